"""The tests of what changed, for the short loop of work (make check).

    python -m tests.changed            prints files and folders for pytest

Changed is what differs from where the branch left `main`, and on `main` itself what is not
committed. A module brings the tests of its room and those that import it; a test brings itself; a
helper of the tests brings the tests that import it. What holds for the whole tree always runs.
(Not found are tests that reach a change through other modules: `make test` before a push.)
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
MAIN = "main"
ALWAYS = ("tests/test_architecture.py", "tests/test_documents.py", "tests/test_mutants.py")
PACKAGES = ("causal_core", "ray_jobs", "tune_spaces")
OF_ALL_TESTS = ("tests/conftest.py", "pyproject.toml", "constraints.txt")
OF_FOLDERS = {
    "cluster": "tests/test_cluster_files.py",
    "configs": "tests/causal_core/test_config.py",
}


def targets_of(changed: Iterable[str], root: Path = REPOSITORY) -> list[str]:
    """Test files and folders for these files (paths below `root`), none inside another one."""
    imports = {
        path.relative_to(root).as_posix(): _imported(path)
        for path in sorted((root / "tests").rglob("test_*.py"))
    }
    found = set(ALWAYS)
    for name in changed:
        path = Path(name)
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        found.update(test for test, imported in imports.items() if module in imported)
        if name in OF_ALL_TESTS:
            found.add("tests")
        elif name in imports:
            found.add(name)
        elif path.parts[0] in PACKAGES:
            found.update(_room(path, root))
        elif path.parts[0] in OF_FOLDERS:
            found.add(OF_FOLDERS[path.parts[0]])
    there = {name for name in found if (root / name).exists()}
    return sorted(n for n in there if not any(p.as_posix() in there for p in Path(n).parents))


def _room(path: Path, root: Path) -> list[str]:
    """The tests that mirror a file's folder; of a package's own folder the files, not the rooms."""
    folder = root / "tests" / path.parent
    while not folder.is_dir():  # templates, presets
        folder = folder.parent
    here = folder.relative_to(root)
    if len(here.parts) > 2:
        return [here.as_posix()]
    return [test.relative_to(root).as_posix() for test in sorted(folder.glob("test_*.py"))]


def _imported(path: Path) -> set[str]:
    """Modules that a test imports, at its head or within."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def changed_files() -> list[str]:
    """Files that differ from where this branch left main, uncommitted and untracked ones too."""
    known = _git("rev-parse", "--verify", "--quiet", MAIN)
    start = _git("merge-base", MAIN, "HEAD") if known else ["HEAD"]
    return sorted(
        {*_git("diff", "--name-only", *start), *_git("ls-files", "--others", "--exclude-standard")}
    )


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines()


if __name__ == "__main__":
    print(" ".join(targets_of(changed_files())))
