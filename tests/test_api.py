"""The names for notebooks: light to import, and the example of the document runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import causal_core
import ray_jobs
from tests.command_line import program
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.long

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "api.md"


def test_importing_both_packages_imports_nothing_heavy():
    code = (
        "import sys, causal_core, ray_jobs\n"
        "assert not {'torch', 'transformers', 'ray', 'pyarrow', 'rich'} & set(sys.modules)\n"
    )
    outcome = program("-c", code)
    assert outcome.returncode == 0, outcome.stderr


def test_every_name_is_there_and_documented_and_no_other():
    text = DOCUMENT.read_text(encoding="utf-8")
    for package in (causal_core, ray_jobs):
        for name in package.__all__:
            assert getattr(package, name) is not None and name in text
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = package.nothing
    named = re.findall(r"`(causal_core|ray_jobs)\.(\w+)\(", text)
    assert all(name in {"causal_core": causal_core, "ray_jobs": ray_jobs}[package].__all__
               for package, name in named)  # fmt: skip


def test_the_example_of_the_document_runs(
    tiny_model_directory, tiny_data, tmp_path, monkeypatch, capsys
):
    config = tiny_config(
        tiny_model_directory, tiny_data, tmp_path / "run",
        train={"max_steps": 1},
        evaluation={"max_new_tokens": 2, "limit": 2},
    )  # fmt: skip
    config.data.limit_validation = 2
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    exec(code, {})
    said = capsys.readouterr().out
    assert "Reloaded with plain transformers" in said
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "merged" / "model.safetensors").is_file()
