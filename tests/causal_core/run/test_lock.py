"""One writer per run directory, with real processes.

1. While one process writes, every other is refused, and told who writes; then the next one may.
2. A writer that was killed, whose machine was started anew, or whose number another process has by
   now, is taken over from; of many that try at once, one does.
3. What cannot be known (another machine, a damaged lock) is refused with how to remove it.
4. A fork of the writer that ends leaves the lock alone.
5. `fresh` renames a directory, and never one that is being written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from causal_core.errors import UnwritableError, UserError
from causal_core.run.lock import LOCK, Writer, only_maker, only_writer

# Waits for a line, tries, says what came of it, and holds the lock until its input ends.
WRITER = """
import os, sys
from pathlib import Path
from causal_core.errors import UserError
from causal_core.run.lock import only_writer
sys.stdin.readline()
try:
    with only_writer(Path(sys.argv[1])):
        if "fork" in sys.argv and os.fork() == 0:
            sys.exit()  # through the end of the block
        if "fork" in sys.argv:
            os.wait()
        print("holds", flush=True)
        sys.stdin.readline()
except UserError:
    print("refused", flush=True)
"""


@pytest.fixture
def writer():
    """Starts processes that write in a directory once they are told to."""
    with contextlib.ExitStack() as started:

        def start(directory, *options):
            process = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(directory), *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            started.callback(process.communicate)
            started.callback(process.kill)
            return process

        yield start


def told(process):
    process.stdin.write("go\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def forge(directory, **changes):
    directory.mkdir()
    (directory / LOCK).write_text(json.dumps(asdict(replace(Writer.this_process(), **changes))))


def test_a_second_writer_is_refused_until_the_first_one_ends(writer, tmp_path):
    first = writer(tmp_path / "run")
    assert told(first) == "holds"
    found = rf"process {first.pid} on this machine .*kill {first.pid}"
    with pytest.raises(UserError, match=found), only_writer(tmp_path / "run"):
        pass
    assert told(writer(tmp_path / "run")) == "refused"
    first.communicate("end\n")
    with only_writer(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_killed_writer_is_taken_over_from_with_a_word(writer, tmp_path, caplog):
    first = writer(tmp_path / "run")
    assert told(first) == "holds"
    first.kill()
    first.wait()
    with only_writer(tmp_path / "run"):
        assert f"process {first.pid}, which wrote there since" in caplog.text
        assert told(writer(tmp_path / "run")) == "refused"


@pytest.mark.parametrize("other", [{"started": "1"}, {"boot": "an earlier one"}])
def test_the_number_of_a_process_alone_proves_nothing(tmp_path, other):
    forge(tmp_path / "run", **other)  # the number is that of this very process, which lives
    with only_writer(tmp_path / "run"):
        assert Writer(**json.loads((tmp_path / "run" / LOCK).read_text())).started != "1"


def test_of_many_that_take_over_at_once_one_does(writer, tmp_path):
    forge(tmp_path / "run", boot="an earlier one")
    processes = [writer(tmp_path / "run") for _ in range(5)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = sorted(process.stdout.readline().strip() for process in processes)
    assert said == ["holds", "refused", "refused", "refused", "refused"]


def test_another_machine_cannot_be_seen_and_a_damaged_lock_says_nothing(tmp_path):
    forge(tmp_path / "far", host="gpu-7")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / LOCK).write_text('{"pid": ')
    for name, found in (("far", "on gpu-7"), ("damaged", "damaged")):
        lock = tmp_path / name / LOCK
        before = lock.read_bytes()
        with pytest.raises(UserError, match=rf"{found}.*\(rm {lock}\)"), only_writer(lock.parent):
            pass
        assert lock.read_bytes() == before
        lock.unlink()
        with only_writer(lock.parent):
            pass


def test_a_fork_that_ends_leaves_the_lock(writer, tmp_path):
    process = writer(tmp_path / "run", "fork")
    assert told(process) == "holds"
    assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == process.pid


def test_fresh_renames_a_directory_unless_it_is_being_written(writer, tmp_path):
    run = tmp_path / "run"
    first = writer(run)
    assert told(first) == "holds"
    (run / "config.yaml").write_text("mine")
    with pytest.raises(UserError), only_writer(run, fresh=True):
        pass
    assert (run / "config.yaml").exists() and not (tmp_path / "run.1").exists()
    first.communicate("end\n")
    with only_writer(run, fresh=True) as moved:
        assert moved == tmp_path / "run.1"
        assert [path.name for path in moved.iterdir()] == ["config.yaml"]
        assert [path.name for path in run.iterdir()] == [LOCK]


def test_what_is_made_has_one_maker_and_nothing_is_left_beside_it(writer, tmp_path):
    made = tmp_path / "new" / "folder" / "export"
    with only_maker(made, moved_by="OUT"):
        assert [path.name for path in made.parent.iterdir()] == [".export.lock"]
        said = rf"process {os.getpid()} .*writing in {made} since.*another place \(OUT\)"
        with pytest.raises(UserError, match=said), only_maker(made, moved_by="OUT"):
            pass
        with only_maker(made.with_name("other"), moved_by="OUT"):
            pass
        made.mkdir()
    assert [path.name for path in made.parent.iterdir()] == ["export"]
    with pytest.raises(UserError, match="none"), only_maker(tmp_path / "a" / "b", moved_by="OUT"):
        raise UserError("there is none")
    assert not (tmp_path / "a").exists()


def test_a_killed_maker_is_taken_over_from(tmp_path):
    gone = replace(Writer.this_process(), boot="an earlier one")
    (tmp_path / f".export{LOCK}").write_text(json.dumps(asdict(gone)))
    with only_maker(tmp_path / "export", moved_by="OUT"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_refused_run_leaves_no_directory(tmp_path):
    with pytest.raises(UserError, match="the config"), only_writer(tmp_path / "run"):
        raise UserError("the config")
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_named_with_its_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UnwritableError, match=r"file/run cannot be written: Not a dir.*run\.dir"),
        only_writer(tmp_path / "file" / "run"),
    ):
        pass


def test_a_name_that_no_directory_can_have_is_named_with_its_setting(tmp_path):
    with (
        pytest.raises(UnwritableError, match=r"too long.*run\.dir"),
        only_writer(tmp_path / ("x" * 300)),
    ):
        pass


@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_a_lock_that_is_no_regular_file_is_refused_and_nothing_elsewhere_is_written(kind, tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.write_text("somebody's")
    if kind == "pipe":
        os.mkfifo(run / LOCK)
    elif kind == "link":
        (run / LOCK).symlink_to(elsewhere)
    else:
        (run / LOCK).mkdir()
    with pytest.raises(UserError, match=r"\.lock"), only_writer(run):
        raise AssertionError("it cannot be held")
    assert elsewhere.read_text() == "somebody's"


@pytest.mark.parametrize("pid", [0, -1, 2**31, 2**70, "x", None, [1]])
def test_a_number_that_no_process_has_is_damage(tmp_path, pid):
    forge(tmp_path / "run", pid=pid)
    with pytest.raises(UserError, match="is damaged"), only_writer(tmp_path / "run"):
        pass


@pytest.mark.parametrize("content", [b"[" * 4000, b"\xff\x00", b"[]", b'{"pid": ' + b"9" * 4000])
def test_a_lock_of_any_content_is_damage(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    with pytest.raises(UserError, match="is damaged"), only_writer(tmp_path):
        pass
    assert (tmp_path / LOCK).read_bytes() == content


def test_what_a_lock_says_is_shown_short_and_on_one_line(tmp_path):
    forge(tmp_path / "run", host="\x1b[31m\u202efar\n" * 99, since="\n\x1b[2J" * 300)
    with pytest.raises(UserError) as caught, only_writer(tmp_path / "run"):
        pass
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000 + 4 * len(str(tmp_path))


def test_without_room_for_a_lock_nothing_is_left(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    for directory in (tmp_path / "new", tmp_path):
        with pytest.raises(UnwritableError, match="No space left"), only_writer(directory):
            pass
    assert list(tmp_path.iterdir()) == []
