"""The config tree: unknown keys are named, presets fill in, impossible pairs are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from causal_core.config import Config, LossSection
from causal_core.config_file import load_config, parse_config
from causal_core.config_loss import LOSS_PRESETS
from causal_core.credentials import message_without_credentials
from causal_core.errors import ConfigError, UnwritableError
from causal_core.files import cache_root

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.epochs=1", "trian: unknown key; did you mean `train`"),
        ("train.epoch=1", "train.epoch: unknown key; did you mean `epochs`"),
        ("train.epochs=zero", "train.epochs: .*found 'zero'"),
        ("train.epochs.x=1", "train.epochs"),
        ("loss.lambda_task=-1", "loss.lambda_task: .*greater than or equal to 0; found -1"),
        ("loss.contrastive=info", "loss.contrastive"),
        ("train.epochs", "expected key.sub=value"),
        ("=1", "expected key.sub=value"),
        ("a..b=1", "expected key.sub=value"),
    ],
)
def test_a_bad_override_is_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        load_config(None, ["train.epochs=0", "lora.rnak=4"])
    assert "train.epochs" in str(error.value) and "did you mean `rank`" in str(error.value)


@pytest.mark.parametrize("text", ["2e-4", "2.0e-4", "0.0002"])
def test_numbers_may_be_written_as_people_write_them(text):
    assert load_config(None, [f"train.learning_rate={text}"]).train.learning_rate == 2e-4


@pytest.mark.parametrize("preset", LOSS_PRESETS)
def test_a_preset_fills_in_what_is_not_given(preset):
    config = load_config(None, [f"loss.preset={preset}", "loss.lambda_task=3"])
    expected = {**dict.fromkeys(LossSection.terms(), 0.0), **LOSS_PRESETS[preset], "task": 3.0}
    assert config.loss.weights() == expected


def test_the_contrastive_preset_is_what_the_reports_say():
    weights = load_config(None, ["loss.preset=contrastive"]).loss.weights()
    assert (weights["task"], weights["causal"], weights["spurious"]) == (1.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.contrastive=triplet", "loss.lambda_spurious=0.5"], "lambda_spurious"),
        (["loss.preset=task_only", "loss.lambda_task=0"], "nothing would be trained"),
        (["engine=plain", "resources.workers=2"], "set engine=ddp"),
        (["engine=deepspeed", "train.optimizer=adamw_8bit"], r"Set train\.optimizer=adamw "),
        (
            ["engine=deepspeed", "deepspeed.zero_stage=3", "model.quantization=nf4"],
            r"Set deepspeed\.zero_stage=2",
        ),
        (["deepspeed.offload_optimizer=true"], "needs engine=deepspeed"),
        (
            ["engine=deepspeed", "resources.workers=2", "resources.gpus_per_worker=0.5"],
            r"Set resources\.gpus_per_worker=1",
        ),
    ],
)
def test_settings_that_cannot_work_together_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


def test_a_preset_given_later_replaces_the_weights_of_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(Config().to_yaml())
    config = load_config(path, ["loss.preset=contrastive", "loss.lambda_robust=2"])
    assert config.loss.weights() == {
        "task": 1.0, "causal": 0.5, "spurious": 0.5, "robust": 2.0, "invariance": 0.0,
        "preference": 0.0, "anchor": 0.0,
    }  # fmt: skip


def test_paths_can_be_made_independent_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    config = load_config(
        None,
        ["data.train=a.jsonl#train", 'data.test.seen="b #1.jsonl"', "model.name_or_path=model",
         "data.cache_dir=cache"],
    ).with_absolute_paths()  # fmt: skip
    assert config.data.train == [f"{tmp_path}/a.jsonl#train"]
    assert config.data.test == {"seen": [f"{tmp_path}/b #1.jsonl"]}
    assert config.model.name_or_path == f"{tmp_path}/model"
    assert config.run.dir == f"{tmp_path}/runs/causal"
    assert Config().with_absolute_paths().model.name_or_path == "demo"


def test_the_resolved_tree_reads_back_as_itself():
    config = load_config(None, ["loss.preset=contrastive", "data.test.seen=a.jsonl"])
    assert parse_config(yaml.safe_load(config.to_yaml())) == config


def test_the_fingerprint_moves_with_results_only():
    base = Config().fingerprint()
    assert load_config(None, ["resources.workers=2"]).fingerprint() == base
    assert load_config(None, ["train.micro_batch_tokens=64"]).fingerprint() == base
    assert load_config(None, ["train.deterministic=true"]).fingerprint() == base
    assert load_config(None, ["run.dir=elsewhere"]).fingerprint() == base
    assert load_config(None, ["engine=deepspeed"]).fingerprint() == base
    assert load_config(None, ["deepspeed.zero_stage=3"]).fingerprint() == base
    assert load_config(None, ["run.seed=1"]).fingerprint() != base
    assert load_config(None, ["lora.rank=8"]).fingerprint() != base


def test_remote_code_is_off_unless_asked_for():
    assert Config().model.trust_remote_code is False


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "model: 3\n"])
def test_a_file_that_is_no_config_is_refused(tmp_path, content):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(path)


@pytest.mark.parametrize(
    "path",
    [
        *(p for p in (REPOSITORY / "configs").glob("*.yaml") if not p.name.startswith("tune-")),
        *(REPOSITORY / "ray_jobs/presets").glob("*.yaml"),
    ],
    ids=lambda p: p.name,
)
def test_every_shipped_config_is_valid(path):
    load_config(path)


HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epochs: 1, epochs: 99}", "line 1: the key 'epochs' is given twice"),
        ("a: &a [x]\nb: *a\nb: 1", "line 3: the key 'b' is given twice, first in line 2"),
        ("a: &a [*a]", "an alias refers to what it is part of"),
        ("[" * 10_000, "nested more than 32 levels deep"),
        ("? [a]\n: 1", "line 1: a list is a key"),
        ("on: 1", "'on' is a key that YAML does not read as text"),
        ("train: {epochs: 0x_}", "'0x_' cannot be read as int"),
        (f"train: {{epochs: {HUGE}}}", "cannot be read as int"),
        ("run: {dir: !!python/object:os.system x}", "cannot be tagged|is not for configs"),
        ("run: {dir: !!set {a}}", "cannot be tagged"),
        ("run: {dir: [}", "not valid YAML: line 1"),
        ("run: {dir: \x1b[31m}", "special characters are not allowed"),
        ('"\\e[31mkey": 1', r"\\x1b\[31mkey': unknown key"),
        ("train: {learning_rate: .inf}", "train.learning_rate: .*finite"),
        ("train: {learning_rate: .nan}", "train.learning_rate: .*finite"),
        ("train: {epochs: true}", "train: epochs is no switch: found true"),
        ("resources: {workers: [1, 99999999]}", "most <= 10000"),
        ("lora: {rank: 1000000000000}", "lora.rank: .*less than or equal to 16384"),
        (f"lora: {{rank: {HUGE[:4000]}}}", "lora.rank: "),
        ("train: {learning_rate: 1e400}", "train.learning_rate"),
    ],
)
def test_whatever_yaml_can_do_ends_in_one_clear_line(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    said = str(caught.value)
    assert len(said) < 700 and len(said.splitlines()) <= 2
    assert said.replace("\n", "").isprintable()
    assert caught.value.__cause__ is None, "a chained error would print what was found"


def test_aliases_are_counted_as_what_they_stand_for(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="more than 20,000 values once its aliases are resolved"):
        load_config(path)
    path.write_text("data: {train: &files [a.jsonl], validation: *files}")
    assert load_config(path).data.validation == ["a.jsonl"]


def test_a_date_is_the_text_that_was_written(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("run: {dir: 2024-01-01}")
    assert load_config(path).run.dir == "2024-01-01"


def test_a_config_that_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name, what in (("pipe", "a pipe"), ("link", "a pipe"), ("folder", "a directory")):
        with pytest.raises(ConfigError, match=f"is {what}, not a regular file"):
            load_config(tmp_path / f"{name}.yaml")
    with pytest.raises(ConfigError, match="is a device"):
        load_config("/dev/zero")
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(tmp_path / name)


@pytest.mark.parametrize(
    "location",
    [
        "s3://user:secret@bucket/path",
        "s3:/user:secret@bucket/path",
        "s3://user:sec/secret@bucket",
        "s3://user:sec@secret@bucket",
        "s3://me@corp.com:secret@bucket",
        "s3://user%3Asecret%40bucket",
        "s3%3A%2F%2Fuser%253Asecret%2540bucket",
        "//:secret@host/share",
        "https:/user:p%40secret@host/what/a/path/makes/of/it",
        "user:secret@host:/path",
        "https://host/container?sv=1&sig=secret",
        "https://host/x?api_key=secret",
        "https://host/x?key=secret",
        "https://host/x?pwd=secret",
        "https://host/x#access_token=secret",
        "https://host/x%3Ftok%65n%3Dsecret",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=secret==",
        "https://hf_secret@huggingface.co/org/model",
    ],
)
@pytest.mark.parametrize(
    "key",
    ["checkpoint.storage", "run.dir", "data.train", "data.test.x", "data.cache_dir",
     "model.name_or_path", "ray.address", "logging.project", "data", "train.epochs", "nonsense"],
)  # fmt: skip
def test_no_field_takes_a_password_and_no_error_prints_one(key, location):
    with pytest.raises(ConfigError, match="carries a password") as caught:
        load_config(None, [f"{key}={location}"])
    assert "secret" not in str(caught.value)


def test_a_message_that_repeats_a_value_masks_it_without_a_scheme_too():
    said = message_without_credentials("error: 'user:secret@host:/path', x.jsonl:3: me@corp.com")
    assert said == "error: 'user:***@host:/path', x.jsonl:3: me@corp.com"
    deep = "%" + "25" * 100_000
    assert message_without_credentials(deep) == deep


@pytest.mark.parametrize(
    "location",
    ["s3://bucket/path", "abfss://container@account.dfs.core.windows.net/x", "hdfs://me@node:9000",
     "ray://head:10001", "s3://bucket?endpoint_override=localhost:9000", "https://h/x?tokenizer=a",
     "a b:c #1.jsonl"],
)  # fmt: skip
def test_locations_without_a_password_are_taken(location):
    assert load_config(None, [f'checkpoint.storage="{location}"']).checkpoint.storage == location


@pytest.mark.parametrize("override", ["run.dir=[s3://u:secret@h", "run.dir.s3://u:secret@h=1"])
def test_an_override_that_cannot_be_read_prints_no_password(override):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("place", ["s3://bucket/run", "gs:/bucket/run"])
def test_a_run_directory_is_of_this_machine(place):
    """It would be made as a folder named `s3:` here, and be missed there."""
    with pytest.raises(ConfigError, match=r"checkpoint\.storage"):
        load_config(None, [f"run.dir={place}"])


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ('run.dir="a\\0b"', "NUL"),
        ('data.train=["x\\0.jsonl"]', "NUL"),
        ('data.test={"\\0": x.jsonl}', "NUL"),
        ('model.name_or_path="\\ud800"', "surrogate"),
        ("run.dir=~nobody-of-this-name/run", "home directory"),
        ("data.cache_dir=~nobody-of-this-name", "home directory"),
        ("data.test={seen: []}", "at least 1 item"),
        ("resources.threads=1000000", "less than or equal to 4096"),
        ("train.micro_batch_tokens=1000000000", "less than or equal to 1048576"),
        ("evaluation.batch_tokens=1000000000", "less than or equal to 1048576"),
        ("evaluation.max_new_tokens=1000000000", "less than or equal to 65536"),
        ('run.dir="\\U00110000"', "not valid YAML"),
        (f"resources.gpu_memory={'9' * 400}GiB", "amount of memory"),
    ],
)
def test_what_no_name_or_amount_can_be_is_refused(override, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        load_config(None, [override])
    assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "value", ["[]", "{}", "[[1]]", "[{a: 1}]", "{a: [1]}", "null", "true", "x"]
)
def test_a_value_of_any_kind_is_taken_or_refused_in_words(value):
    refused = 0
    for key in Config().flat():
        try:
            load_config(None, [f"{key}={value}"])
        except ConfigError as error:
            assert key.partition(".")[0] in str(error)
            refused += 1
    assert refused > 20


def test_without_a_home_the_setting_that_moves_the_cache_is_named(monkeypatch):
    monkeypatch.setenv("CAUSAL_RAY_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(UnwritableError, match=r"data\.cache_dir"):
        cache_root()
