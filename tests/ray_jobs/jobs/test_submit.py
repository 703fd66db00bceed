"""What `causal submit` refuses and packs; without a cluster.

Against a real one: test_real_cluster.py.
"""

from __future__ import annotations

import os
import random
import zipfile
from pathlib import Path

import pytest
import yaml
from typer.exceptions import TyperException

from causal_core.amounts import card_bytes
from causal_core.config_file import parse_config
from causal_core.errors import ConfigError, UserError
from ray_jobs.cli import commands
from ray_jobs.jobs import packaging
from ray_jobs.jobs.client import exposure, job_server_address, unencrypted
from ray_jobs.jobs.entrypoint import job_of
from ray_jobs.jobs.submit import _runtime_environment, planned_memory
from ray_jobs.training.resources import Ask, smallest_card, verdict

REPOSITORY = Path(__file__).resolve().parents[3]
CPU_CONFIG = str(REPOSITORY / "configs" / "cpu.yaml")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's directory with data in it, as the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("train", "validation", "test_seen", "test_novel"):
        path = Path("data") / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}\n")
    return tmp_path


def training(*overrides: str) -> list[str]:
    return ["train", CPU_CONFIG, "run.dir=/shared/run", *overrides]


# What is refused before anything is uploaded


def test_the_job_is_the_entry_point_of_the_local_command(folder):
    job = job_of([*training("train.epochs=2"), "--fresh", "--no-evaluate"], commands(), gpus=4)
    assert job.entrypoint == [
        "python", "-m", "ray_jobs.train", "--config", "job.yaml", "--fresh", "--no-evaluate",
    ]  # fmt: skip
    assert job.config.train.epochs == 2 and job.run_dir == "/shared/run"
    assert job.config.resources.workers == 4 and job.config.resources.gpus_per_worker == 1
    assert [str(path) for path in job.data] == sorted(f"data/{p.name}" for p in folder.glob("*/*"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], "no command was given"),
        (["demo"], "'demo' is no command"),
        (["train", CPU_CONFIG], "run.dir=runs/cpu is relative"),
        (training("train.epoch=1"), "did you mean `epochs`"),
        (training("data.train=nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (training("data.train=../secret.jsonl"), "no such file below this directory"),
        (training("checkpoint.storage=out"), "checkpoint.storage=out is relative"),
        (training("model.name_or_path=data"), "models are not uploaded"),
        (training("resources.workers=0", "resources.gpus_per_worker=1"), "holds no GPU"),
        (["evaluate", "runs/x"], "runs/x is relative"),
        (["evaluate", "/shared/x", "--against", "control=runs/y"], "runs/y is relative"),
        (["evaluate", "/shared/x", "--against", "/shared/y"], "expected NAME=RUN_DIR"),
        (["evaluate", "/shared/x", "--test", "mine=mine.jsonl"], "mine.jsonl is relative"),
        (["evaluate", "/shared/x", "--against", "a=adapter:./y"], "./y is relative"),
        (["evaluate", "--model", "data", "--out", "/shared/e"], "data is relative"),
        (["evaluate", "--model", "owner/name"], "--out: without a run directory"),
    ],
)
def test_what_cannot_work_is_refused(folder, command, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        job_of(command, commands())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train"], "no config was given: causal init"),
        (training("--frehs"), "No such option: --frehs"),
        (["evaluate", "/shared/x", "--limit", "0"], "--limit"),
    ],
)
def test_arguments_are_those_of_the_local_command(command, message):
    with pytest.raises(TyperException) as refused:
        job_of(command, commands())
    assert message in refused.value.format_message()


def test_a_command_that_this_program_lacks_is_refused():
    known = {name: command for name, command in commands().items() if name != "tune"}
    with pytest.raises(UserError, match="'tune' is no command"):
        job_of(["tune", CPU_CONFIG], known)


def test_every_switch_of_a_local_command_is_the_jobs_too(folder):
    """Whatever switch `causal train` has, the job gets it when it is given, and only then."""
    options = [p for p in commands()["train"].params if p.param_type_name == "option"]
    assert len(options) >= 3
    for option in options:
        for word in (*option.opts[:1], *option.secondary_opts[:1]):
            passed = job_of([*training(), word], commands()).entrypoint[5:]
            assert passed == ([] if word == "--evaluate" else [word])


def test_a_password_in_a_location_is_refused_and_not_repeated():
    for section in (
        {"checkpoint": {"storage": "s3://AKIA:canary@bucket/x"}},
        {"data": {"train": ["s3://AKIA:canary@bucket/x.jsonl"]}},
        {"data": {"test": {"seen": "hdfs://me:canary@host/x"}}},
    ):
        with pytest.raises(ConfigError, match="carries a password") as refused:
            parse_config(section)
        assert "canary" not in str(refused.value)
    parse_config({"checkpoint": {"storage": "s3://bucket/a:b@c"}})


def test_the_runtime_environment_file_is_merged_and_checked(tmp_path):
    environment = _runtime_environment(REPOSITORY / "cluster" / "runtime-env.yaml")
    assert environment["pip"]["packages"]
    assert environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "120"
    bad = tmp_path / "bad.yaml"
    bad.write_text("working_dir: .\n")
    for path in (bad, tmp_path / "nowhere.yaml"):
        with pytest.raises(UserError, match=path.name):
            _runtime_environment(path)


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto"])
def test_an_address_that_is_no_job_server_is_refused(address):
    with pytest.raises(UserError, match="expected the URL"):
        job_server_address(address)


def test_a_token_over_plain_http_to_elsewhere_is_warned_of():
    assert "unencrypted" in unencrypted("http://192.0.2.1:1")[0]
    assert unencrypted("http://127.0.0.1:1") == unencrypted("https://192.0.2.1:1") == []
    assert exposure("http://127.0.0.1:1") == []


# What is uploaded


def names(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        return opened.namelist()


def test_the_upload_holds_code_config_and_named_data_and_nothing_else(folder):
    (folder / ".env").write_text("HF_TOKEN=canary")
    upload = packaging.pack(folder / "a.zip", {"job.yaml": "run: {}"}, [Path("data/train.jsonl")])
    packed = set(names(upload.archive))
    assert upload.files == len(packed) and upload.size == upload.archive.stat().st_size
    code = {name for name in packed if name.partition("/")[0] in packaging.PACKAGES}
    assert packed - code == {"job.yaml", "data/train.jsonl"}
    for package in packaging.PACKAGES:
        there = {
            path.relative_to(REPOSITORY).as_posix()
            for path in (REPOSITORY / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert {name for name in code if name.startswith(f"{package}/")} == there


def test_patterns_weighted_files_and_saved_directories_are_uploaded(folder):
    saved = folder / "data" / "saved"
    saved.mkdir()
    for name in ("state.json", "a.arrow"):
        (saved / name).write_text("{}")
    files = "[{path: 'data/t*.jsonl#train', weight: 2}, data/saved]"
    job = job_of(training(f"data.train={files}", "data.validation=[]", "data.test={}"), commands())
    assert [str(path) for path in job.data] == [
        "data/saved/a.arrow", "data/saved/state.json", "data/test_novel.jsonl",
        "data/test_seen.jsonl", "data/train.jsonl",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"data/x\*\.jsonl: no such file"):
        job_of(training("data.train=[data/x*.jsonl]"), commands())


def test_equal_content_gives_equal_uploads(folder):
    contents = []
    for name in ("a.zip", "b.zip"):
        os.utime("data/train.jsonl")
        upload = packaging.pack(folder / name, {"job.yaml": "x"}, [Path("data/train.jsonl")])
        contents.append(upload.archive.read_bytes())
    assert contents[0] == contents[1]


def test_a_large_upload_is_refused_with_its_largest_files(folder, monkeypatch):
    monkeypatch.setattr(packaging, "LIMIT_BYTES", 1_000_000)
    noise = random.Random(0).randbytes(900_000)  # does not compress
    Path("data/large.jsonl").write_bytes(noise)
    Path("data/larger.jsonl").write_bytes(noise + noise)
    with pytest.raises(UserError, match="more than 1 MB") as refused:
        packaging.pack(folder / "a.zip", {}, [Path("data/large.jsonl"), Path("data/larger.jsonl")])
    first, second = str(refused.value).splitlines()[1:3]
    assert first.split() == ["1.8", "MB", "data/larger.jsonl"]
    assert second.split() == ["0.9", "MB", "data/large.jsonl"]


def test_the_uploaded_config_is_the_validated_one(folder):
    job = job_of(training("lora.rank=4", "ray.address=auto"), commands())
    shipped = parse_config(yaml.safe_load(job.config.to_yaml()))
    assert shipped == job.config and shipped.lora.rank == 4
    assert shipped.ray.address is None  # the job is on its cluster already


# Whether it fits


@pytest.mark.parametrize(
    ("ask", "nodes", "fits", "says"),
    [
        (Ask(2, 2, 1, 0), [{"CPU": 2}], 2, None),
        (Ask(2, 2, 1, 1), [{"CPU": 8, "GPU": 1}, {"CPU": 8}], 1, "waits for an autoscaler"),
        (Ask(1, 4, 1, 1), [{"CPU": 2, "GPU": 2}], 2, "2 of at most 4"),
        (Ask(3, 3, 1, 0.3), [{"CPU": 8, "GPU": 1}], 3, None),
        (Ask(1, 1, 4, 0), [{"CPU": 2}, {"CPU": 2}], 0, "0 of 1"),
        (Ask(1, 1, 1, 0), [{}], 0, "0 of 1"),
        (Ask(0, 0, 1, 0), [{}], 0, None),
        (Ask(2, 2, 1, 0, "T4"), [{"CPU": 8}, {"CPU": 1, "accelerator_type:T4": 1}], 1, "1 of 2"),
    ],
)
def test_workers_are_counted_node_by_node(ask, nodes, fits, says):
    assert ask.fitting(nodes) == fits
    note = verdict(ask, nodes)
    assert note is None if says is None else says in note


def test_the_card_is_the_smallest_that_ray_names():
    named = [{"accelerator_type:A10G": 1.0, "GPU": 1.0}, {"accelerator_type:A100": 1.0}, {}]
    assert smallest_card(named) == card_bytes("A10G") < card_bytes("A100")
    assert smallest_card([{"accelerator_type:UNHEARD-OF": 1.0}]) is None


def test_memory_is_planned_and_what_needs_more_than_the_card_is_refused(tiny_model_directory):
    config = parse_config({"model": {"name_or_path": str(tiny_model_directory)}})
    assert planned_memory(config, None).endswith("per worker, as planned")
    config.resources.gpus_per_worker = 1
    assert " of 22.10 GiB" in planned_memory(config, card_bytes("A10G"))
    with pytest.raises(UserError, match="will have 100 MiB"):
        planned_memory(config, 100 * 2**20)
    config.resources.gpus_per_worker = 0.5
    assert " of 11.05 GiB" in planned_memory(config, card_bytes("A10G"))
    config.model.name_or_path = "/only/on/the/cluster"
    assert "the job does it" in planned_memory(config, None)


# Following
