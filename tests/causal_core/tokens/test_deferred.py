"""An encoder that is put off is the encoder, where it is asked for a text."""

from __future__ import annotations

import json
import shutil

import pytest

from causal_core.tokens import run_data
from causal_core.tokens.run_data import encoder_source, load_encoder, load_run_data
from tests.tiny_run import tiny_config


@pytest.fixture
def config(tiny_model_directory, tiny_data, tmp_path):
    model = shutil.copytree(tiny_model_directory, tmp_path / "model")
    config = tiny_config(model, tiny_data, tmp_path / "run")
    config.data.cache_dir = str(tmp_path / "cache")
    return config


@pytest.fixture
def made(monkeypatch):
    """The configs that encoders were made for."""
    seen = []

    def counted(config):
        seen.append(config)
        return load_encoder(config)

    monkeypatch.setattr(run_data, "load_encoder", counted)
    return seen


def test_tokenised_data_need_no_tokenizer(config, made):
    first = load_run_data(config)
    assert len(made) == 1
    second = load_run_data(config)
    assert len(made) == 1
    assert second.fingerprint() == first.fingerprint()
    assert second.train.table.equals(first.train.table)
    texts = [("be brief", "hello"), ("you sort mail", "one more")]
    assert second.encoder.prompts_ids(texts) == load_encoder(config).prompts_ids(texts)
    assert second.encoder is second.encoder
    assert len(made) == 2


def test_what_is_known_of_it_is_what_the_encoder_says(config, made):
    for _ in range(2):  # made, then looked up
        source, encoder = encoder_source(config), load_encoder(config)
        assert source.fingerprint() == encoder.fingerprint()
        assert source.largest_token() == max(encoder.tokenizer.get_vocab().values())


def test_another_tokenizer_or_other_arguments_are_another_encoder(config, made, tmp_path):
    before = encoder_source(config).fingerprint()
    config.model.chat_template_args = {"enable_thinking": False}
    other = encoder_source(config)
    assert other.fingerprint() == load_encoder(config).fingerprint() != before
    config.model.chat_template_args = {}
    path = tmp_path / "model" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["x"], vocabulary["y"] = vocabulary["y"], vocabulary["x"]
    path.write_text(json.dumps(tokenizer))
    changed = encoder_source(config)
    assert changed.fingerprint() == load_encoder(config).fingerprint() != before
