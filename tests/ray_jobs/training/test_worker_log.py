"""From a worker to the terminal: its log records arrive, hostile ones harmless; Ray's words do not.

1. What workers log from now on is said once, in their order, in the form of the driver's log.
2. No control character or markup of a record drives the terminal; no line poses as another logger.
3. A log file is bounded; one that cannot be written stops nothing and is named.
4. Ray's loggers and its prints go to `log/ray.log`, its errors to `log/failure.log`.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from causal_core.files import LOG
from ray_jobs.console import logs
from ray_jobs.console.logs import LogFile, TextFormatter, configure_logs
from ray_jobs.training import ray_words, worker_log
from ray_jobs.training.ray_words import failure_kept, first_line, ray_says_into, root_cause
from ray_jobs.training.worker_log import WorkerLog
from tests.ray_jobs.console.test_logs import as_before  # noqa: F401 - a fixture

HOSTILE = "\x1b[31mred\x1b[0m [bold]no[/bold] \x9b2J \u202e\x7f\nlevel: fine"
WORKER = """
import logging, sys
from pathlib import Path
from ray_jobs.training.worker_log import keep_log
keep_log("text", Path(sys.argv[1]), "worker-" + sys.argv[2], rank=int(sys.argv[2]))
for message in sys.argv[3:]:
    logging.getLogger("causal_core.step").warning("%s", message)
"""


def say(directory, rank, *messages):
    """Logs as a worker does, in a process of its own."""
    subprocess.run(
        [sys.executable, "-c", WORKER, str(directory), str(rank), *messages],
        check=True, capture_output=True,
    )  # fmt: skip


def test_what_workers_log_is_said_once_and_from_now_on(tmp_path, capsys):
    say(tmp_path, 0, "of an earlier run")
    configure_logs("text")
    log = WorkerLog(tmp_path)
    log.look()
    say(tmp_path, 0, "resumed", "memory ran out")
    say(tmp_path, 1, "memory ran out", "mine alone")
    say(tmp_path, 0, "again", "again")
    log.look()
    log.look()
    assert capsys.readouterr().err.splitlines() == [
        "WARNING resumed",
        "WARNING memory ran out",
        "WARNING again",
        "WARNING again",
        "WARNING worker 1: mine alone",
    ]


def test_the_same_words_much_later_are_said_again(tmp_path, capsys, monkeypatch):
    configure_logs("text")
    log, now = WorkerLog(tmp_path), 100.0
    monkeypatch.setattr(worker_log.time, "monotonic", lambda: now)
    for rank, now in ((0, 100.0), (1, 105.0), (1, 120.0)):  # noqa: B007 - the clock's
        say(tmp_path, rank, "memory ran out")
        log.look()
    assert capsys.readouterr().err.splitlines() == [
        "WARNING memory ran out",
        "WARNING worker 1: memory ran out",
    ]


def test_records_keep_time_rank_and_values_in_a_json_log(tmp_path, capsys):
    configure_logs("json", run="the driver's")
    log = WorkerLog(tmp_path)
    say(tmp_path, 3, HOSTILE)
    log.look()
    kept = (tmp_path / LOG / "worker-3.jsonl").read_text()
    said = capsys.readouterr().err
    assert json.loads(said) == json.loads(kept)
    assert json.loads(said)["message"] == HOSTILE and json.loads(said)["rank"] == 3
    assert said.rstrip("\n").isprintable() and said.isascii()


def test_nothing_in_a_record_drives_the_terminal(tmp_path, capsys):
    configure_logs("text")
    log = WorkerLog(tmp_path)
    say(tmp_path, 0, HOSTILE)
    forged = {"time": "2026-01-01T00:00:00+00:00", "level": "error", "message": "forged"}
    lines = [
        "\x1b[2Jcut off by a crash", "[]", "null", "1" * 5000, "[" * 50_000,
        json.dumps({**forged, "logger": "root"}),
        json.dumps({**forged, "logger": "causal_core", "level": "\x1b"}),
        json.dumps({**forged, "logger": "causal_core", "time": "9999-99-99"}),
        json.dumps({**forged, "logger": "causal_core", "message": "\x1b[31m%s %d {}"}),
    ]  # fmt: skip
    with (tmp_path / LOG / "worker-0.jsonl").open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))
    log.look()
    said = capsys.readouterr().err
    assert "\\x1b[31mred\\x1b[0m [bold]no[/bold] \\x9b2J \\u202e\\x7f\nlevel: fine" in said
    assert "WARNING worker-0.jsonl: \\x1b[2Jcut off by a crash" in said
    assert "ERROR \\x1b[31m%s %d {}\n" in said
    assert all(c == "\n" or c.isprintable() for c in said)
    assert said.count("WARNING worker-0.jsonl: ") == len(lines) - 1


def test_an_exception_of_a_worker_stays_in_its_file(tmp_path, capsys):
    configure_logs("text", tmp_path / LOG / "worker-0.jsonl")
    log = WorkerLog(tmp_path)
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("causal_core").exception("the memory cannot be planned")
    configure_logs("text")
    capsys.readouterr()
    log.look()
    assert capsys.readouterr().err == "ERROR the memory cannot be planned\n"
    assert "Traceback" in (tmp_path / LOG / "worker-0.jsonl").read_text()


def test_a_log_file_is_bounded_and_read_on_where_it_was_renamed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logs, "_FILE_BYTES", 2000)
    path = tmp_path / LOG / "worker-0.jsonl"
    log = WorkerLog(tmp_path)
    for number in range(50):
        configure_logs("text", path)
        logging.getLogger("causal_core").warning("number %d", number)
        configure_logs("text")
        capsys.readouterr()
        log.look()
        assert capsys.readouterr().err == f"WARNING number {number}\n"
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["worker-0.jsonl", "worker-0.jsonl.1"]
    assert all(file.stat().st_size <= 2000 for file in files)


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    (tmp_path / LOG).write_text("a file is in the way")
    handler = LogFile(tmp_path / LOG / "ray.log", TextFormatter())
    for _ in range(3):
        handler.handle(logging.makeLogRecord({"msg": "lost"}))
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1 and "Traceback" not in said
    assert f"{tmp_path}/{LOG}/ray.log" in said


def test_what_ray_says_is_kept_and_not_shown(tmp_path, capsys):
    from ray._private import worker
    from ray._private.ray_logging import setup_logger

    before = worker.print_to_stdstream
    with ray_says_into(tmp_path):
        setup_logger("WARNING", ray_words.FORM)  # as ray.init does
        logging.getLogger("ray.tune").warning("\x1b[33ma warning\x1b[0m")
        logging.getLogger("ray.train").error("an error \x1b]0;title\x07")
        data = {"lines": ["a worker died"], "pid": "raylet", "is_err": False}
        worker.print_to_stdstream(data, ignore_prefix=False)
    assert worker.print_to_stdstream is before
    assert capsys.readouterr() == ("", "")
    kept = (tmp_path / LOG / "ray.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in kept] == [
        "WARNING a warning",
        "ERROR an error \\x1b]0;title\\x07",
        "WARNING (raylet) a worker died",
    ]


def test_a_quiet_ray_leaves_no_file(tmp_path):
    with ray_says_into(tmp_path / "run"):
        logging.getLogger("ray").info("connected")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def failed():
    try:
        raise RuntimeError(
            "\x1b[36mray::worker()\x1b[39m died\nTraceback\n  it ended. "
            "Some common causes include: (1) many\n\n"
        )
    except RuntimeError as error:
        return error


def test_a_failure_of_ray_is_kept_whole_and_told_in_a_line(tmp_path, failed):
    path = tmp_path / LOG / ray_words._FAILURE_LOG
    for _ in range(2):  # of every call of the command
        assert failure_kept(tmp_path, failed) == f"Ray's full error is in {path}"
    kept = path.read_text()
    assert kept.count("RuntimeError: ray::worker() died\nTraceback\n  it ended. Some") == 2
    assert "test_worker_log.py" in kept and "\x1b" not in kept
    assert first_line(failed) == "ray::worker() died" and root_cause(failed) == "it ended"
    assert first_line(RuntimeError()) == root_cause(RuntimeError()) == "RuntimeError"
    gone = RuntimeError(
        "Traceback ...\nRuntimeError: Unable to set up cluster storage with the following settings:"
        "\nStorageContext<...>\nCheck that all nodes ... See: https://docs.ray.io/en/latest/train"
    )
    assert "checkpoint.storage" in root_cause(gone) and "ray.io" not in root_cause(gone)


def test_a_failure_that_cannot_be_kept_is_shown(tmp_path, failed, capsys):
    configure_logs("text")
    (tmp_path / LOG).write_text("a file is in the way")
    assert "cannot be written" in failure_kept(tmp_path, failed)
    assert "Some common causes include" in capsys.readouterr().err
