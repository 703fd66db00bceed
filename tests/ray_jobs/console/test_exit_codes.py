"""Where the file system refuses, a command says which place, why and what moves it (exit code 1).

1. A cache, a run directory that cannot be: named with the setting, and the data is not blamed.
2. No space in the middle of a run, in the checkpoints or in the log: earlier checkpoints stay.
3. Whatever else is refused while a command runs ends in one sentence; other defects in a traceback.
"""

from __future__ import annotations

import errno
import os

import pytest
import torch

from causal_core.checkpoints import checkpoint
from causal_core.errors import StorageRefusedError, UnwritableError
from causal_core.run import loop, saving
from causal_core.run.context import LocalContext
from causal_core.run.run_log import RunLog
from causal_core.tokens.run_data import load_run_data
from ray_jobs.console.exit_codes import RUN_FAILED, USER_INPUT, exit_with_code
from tests.tiny_run import tiny_config


def refusal(number, path="/somewhere"):
    return OSError(number, os.strerror(number), path)


def outcome(command, capsys):
    """Exit code and last words of a command."""
    with pytest.raises(SystemExit) as left:
        exit_with_code(command)
    return left.value.code, capsys.readouterr().err


@pytest.fixture
def config(tiny_model_directory, tiny_data, tmp_path):
    return tiny_config(tiny_model_directory, tiny_data, tmp_path / "run", train={"max_steps": 1})


def test_a_cache_that_cannot_be_written_is_named_and_not_the_data(config, tmp_path, capsys):
    # Below a regular file nobody can write, root as little as others.
    (tmp_path / "file").write_text("")
    config.data.cache_dir = str(tmp_path / "file" / "cache")
    code, said = outcome(lambda: load_run_data(config), capsys)
    assert code == USER_INPUT
    assert f"{tmp_path}/file/cache" in said and "cannot be written: Not a directory" in said
    assert "data.cache_dir or $CAUSAL_RAY_CACHE" in said and ".jsonl" not in said


def test_a_digest_that_cannot_be_kept_does_not_blame_the_file(config, tmp_path, monkeypatch):
    def refuse(path, text):
        raise refusal(errno.EROFS)

    monkeypatch.setattr("causal_core.files.write_whole", refuse)
    monkeypatch.setattr("causal_core.files._is_settled", lambda path: True)
    config.data.cache_dir = str(tmp_path / "cache")
    with pytest.raises(UnwritableError, match=r"cache cannot be written: Read-only.*CACHE"):
        load_run_data(config)


@pytest.mark.parametrize("by", [refusal(errno.ENOSPC), saving.SafetensorError("No space left")])
def test_no_space_for_a_checkpoint(config, tmp_path, monkeypatch, capsys, by):
    def refuse(*_):
        raise by

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    context = LocalContext(tmp_path / "run", torch.device("cpu"))
    code, said = outcome(lambda: loop.train(config, context), capsys)
    assert code == USER_INPUT and "No space left" in said
    assert "checkpoint.storage, run.dir and $TMPDIR" in said and "Traceback" not in said


def test_no_space_for_the_log(config, tmp_path):
    class Full:
        def write(self, line):
            raise refusal(errno.ENOSPC)

        def close(self):
            pass

    log = RunLog(tmp_path, 0, config.logging)
    log.close()
    log._files["metrics.jsonl"] = Full()
    with pytest.raises(StorageRefusedError, match=r"metrics\.jsonl cannot be written: No space"):
        log.metrics("train", 1, {"loss": 1.0})


@pytest.mark.parametrize(
    "number",
    [errno.EROFS, errno.ENOSPC, errno.EFBIG, errno.EACCES, errno.EDQUOT, errno.ENAMETOOLONG,
     errno.ELOOP, errno.ENOTDIR, errno.EISDIR],
)  # fmt: skip
def test_any_other_refusal_is_one_sentence(number, capsys):
    def command():
        raise refusal(number)

    code, said = outcome(command, capsys)
    assert code == USER_INPUT and said.count("\n") == 1
    assert f"/somewhere: {os.strerror(number)}. " in said and "run.dir" in said


@pytest.mark.parametrize(
    ("words", "then"),
    [
        (["train", "own.yaml"], "continues from the last checkpoint"),
        (["data", "targets", "in", "out"], "goes on from the answers that it has"),
        (["data", "inject", "in", "out"], "begins anew; nothing was left half written"),
        (["attack", "run"], "goes on from the levels that it has"),
        (["evaluate", "run"], "begins anew; nothing was left half written"),
    ],
)
def test_who_interrupts_is_told_what_the_same_command_does(words, then, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["causal", *words])

    def interrupted():
        raise KeyboardInterrupt

    code, said = outcome(interrupted, capsys)
    assert (code, said) == (130, f"interrupted; the same command {then}\n")


def test_what_nobody_refused_keeps_its_traceback(capsys):
    def command():
        raise refusal(errno.EINVAL)

    code, said = outcome(command, capsys)
    assert code == RUN_FAILED and "Traceback" in said
