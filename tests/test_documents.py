"""The documents say what is: every file, test and invariant that they name exists."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("*/*.md")]
CODE = [
    path
    for folder in ("causal_core", "ray_jobs", "tune_spaces", "tests", "benchmarks")
    for path in (REPOSITORY / folder).rglob("*.py")
]
INVARIANTS = REPOSITORY / "docs" / "invariants.md"
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
_PATH = re.compile(r"(?<![\w/.])(?:causal_core|ray_jobs|tune_spaces|tests|configs|docs)/[\w./-]*\w")
_CITED = re.compile(r"(?:invariants? |\()I(\d+)(?: and I(\d+)|(?:, I(\d+)))?")


def test_every_test_that_an_invariant_names_exists():
    named = _TEST.findall(INVARIANTS.read_text(encoding="utf-8"))
    assert len(named) > 10
    for file, test in named:
        text = (REPOSITORY / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, f"{file} has no {test}"


def test_every_invariant_has_a_test():
    paragraphs = re.split(r"\n(?=\*\*I\d+ )", INVARIANTS.read_text(encoding="utf-8"))[1:]
    assert [int(re.match(r"\*\*I(\d+)", p)[1]) for p in paragraphs] == list(range(1, 11))
    assert all(_TEST.search(p) for p in paragraphs)


def test_code_cites_only_invariants_that_stand_there():
    wrong = [
        f"{path.relative_to(REPOSITORY)} cites I{number}"
        for path in CODE
        for numbers in _CITED.findall(path.read_text(encoding="utf-8"))
        for number in numbers
        if number and not 1 <= int(number) <= 10
    ]
    assert not wrong


def test_files_that_a_document_names_exist():
    wrong = [
        f"{path.relative_to(REPOSITORY)} names {name}"
        for path in DOCUMENTS
        for name in _PATH.findall(path.read_text(encoding="utf-8"))
        if "*" not in name and not (REPOSITORY / name).exists()
    ]
    assert not wrong


def test_links_between_documents_lead_somewhere():
    wrong = [
        f"{path.relative_to(REPOSITORY)} links to {target}"
        for path in DOCUMENTS
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)", path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert not wrong
