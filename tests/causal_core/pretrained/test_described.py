"""What is remembered of a model is remembered of these very files."""

from __future__ import annotations

import os
import shutil

import pytest

from causal_core.config import ModelSection
from causal_core.pretrained.described import ARCHITECTURE, files_digest, from_files


@pytest.fixture
def model(tiny_model_directory, tmp_path):
    return shutil.copytree(tiny_model_directory, tmp_path / "model")


def section(model, **settings):
    return ModelSection(name_or_path=str(model), **settings)


def changed(model, name):
    path = model / name
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + "\n")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "config.json", "vocab.txt", "additional_chat_templates/tools.jinja"]
)
def test_any_file_of_a_tokenizer_counts(model, name):
    before = files_digest(section(model))
    assert files_digest(section(model)) == before
    changed(model, name)
    assert files_digest(section(model)) != before


def test_weights_do_not_count_and_a_tokenizer_is_no_part_of_an_architecture(model):
    whole = files_digest(section(model))
    architecture = files_digest(section(model), files=ARCHITECTURE)
    (model / "model.safetensors").write_bytes(b"other weights")
    assert files_digest(section(model)) == whole
    changed(model, "tokenizer.json")
    assert files_digest(section(model), files=ARCHITECTURE) == architecture
    changed(model, "config.json")
    assert files_digest(section(model), files=ARCHITECTURE) != architecture


def test_a_file_by_another_name_is_another_file(model):
    (model / "a.txt").write_text("the same")
    before = files_digest(section(model))
    (model / "a.txt").rename(model / "b.txt")
    assert files_digest(section(model)) != before


def test_nothing_is_remembered_of_a_hub_of_own_code_or_of_what_cannot_be_read(model, tmp_path):
    asked = [
        ModelSection(name_or_path="someone/some-model"),
        section(model, trust_remote_code=True),
        section(model),
    ]
    os.mkfifo(model / "pipe.txt")  # a reader would wait for a writer
    for model_section in asked:
        answers = iter((1, 2))
        for expected in (1, 2):
            found = from_files(
                model_section, str(tmp_path / "cache"), ["count"], answers.__next__, int
            )
            assert found == expected


def test_what_follows_from_the_same_files_is_computed_once(model, tmp_path):
    cache, answers = str(tmp_path / "cache"), iter((1, 2))
    for expected in (1, 1):
        assert from_files(section(model), cache, ["n"], answers.__next__, int) == expected
    changed(model, "tokenizer_config.json")
    assert from_files(section(model), cache, ["n"], answers.__next__, int) == 2
