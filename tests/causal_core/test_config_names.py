"""Old names of the config still mean what they meant, and a run under them is the same run."""

from __future__ import annotations

import pytest
import yaml

from causal_core.config import Config, LossSection
from causal_core.config_file import load_config, parse_config
from causal_core.errors import ConfigError

METRIC = "checkpoint.metric=uplift"  # the default of that time
OLD = [METRIC, "loss.preset=reports", "loss.kind=triplet", "loss.lambda_spurious=0"]
NEW = [METRIC, "loss.preset=contrastive", "loss.contrastive=triplet", "loss.lambda_spurious=0"]


def test_fingerprints_are_those_that_old_checkpoints_hold():
    # Written by the version that knew only the old names.
    assert load_config(None, NEW[:2]).fingerprint() == (
        "d0a246c0a30d8fbf0d6c8f2a7315918b3be10e88aa5e1b13221967cf74b5c56d"
    )
    assert load_config(None, NEW).fingerprint() == (
        "49ba65a7e57dce10b0757acfb6c8d036e4f510aef61a403f51258700ade9c232"
    )
    assert load_config(None, OLD).fingerprint() == load_config(None, NEW).fingerprint()


def test_an_old_file_reads_as_the_new_one_and_is_told_the_new_words(tmp_path, caplog):
    tree = yaml.safe_load(load_config(None, NEW).to_yaml())
    loss = tree["loss"]
    loss["kind"], loss["preset"] = loss.pop("contrastive"), "reports"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    caplog.clear()
    assert load_config(path) == load_config(None, NEW)
    assert "loss.kind is called loss.contrastive now" in caplog.text
    assert "loss.preset=reports is called loss.preset=contrastive now" in caplog.text


def test_new_names_are_read_in_silence(caplog):
    load_config(None, NEW)
    assert not caplog.text


@pytest.mark.parametrize("override", ["loss.kind=info_nce", "loss.contrastive=info_nce"])
@pytest.mark.parametrize("name", ["kind", "contrastive"])
def test_an_override_wins_over_the_file_under_either_name(override, name, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"loss": {name: "triplet"}}))
    assert load_config(path, [override]).loss.contrastive == "info_nce"


def test_both_names_at_once_are_refused():
    message = "loss.kind is the old name of loss.contrastive"
    with pytest.raises(ConfigError, match=message):
        parse_config({"loss": {"kind": "triplet", "contrastive": "triplet"}})
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["loss.kind=triplet", "loss.contrastive=triplet"])


def test_only_new_names_are_written():
    assert "kind" not in LossSection.model_fields
    assert "reports" not in Config.model_validate({"loss": {"preset": "reports"}}).to_yaml()


def test_a_field_that_came_later_changes_a_fingerprint_only_where_it_is_used():
    plain = load_config(None, NEW[:2]).fingerprint()
    as_before = [*NEW[:2], "loss.beta=0.5", "loss.worst_case=null"]
    assert load_config(None, as_before).fingerprint() == plain
    for used in ("loss.lambda_preference=1", "loss.worst_case=1"):
        assert load_config(None, [*NEW[:2], used]).fingerprint() != plain
