"""Files are whole or absent, whatever interrupts their writing."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from causal_core.files import file_digest, is_remote, whole_or_absent, write_whole


def test_a_failure_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = write_whole(tmp_path / "new" / "file.txt", "earlier")
    with pytest.raises(KeyboardInterrupt), whole_or_absent(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "earlier"
    assert list(path.parent.iterdir()) == [path]


def test_readers_never_see_a_part(tmp_path):
    path = tmp_path / "file.txt"
    with whole_or_absent(path, durable=True) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_text_and_bytes_are_written_as_they_are(tmp_path):
    assert write_whole(tmp_path / "text", "é\n\r\n").read_bytes() == "é\n\r\n".encode()
    assert write_whole(tmp_path / "bytes", b"\x00\xff").read_bytes() == b"\x00\xff"


def test_writers_at_once_do_not_mix(tmp_path):
    path = tmp_path / "file.txt"
    texts = [str(i) * 200_000 for i in range(8)]
    threads = [threading.Thread(target=write_whole, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_the_usual_permissions_apply(tmp_path):
    (tmp_path / "plain").write_text("x")
    written = write_whole(tmp_path / "written", "x")
    assert written.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_has_no_end_or_waits_has_no_digest(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/proc/kmsg"), tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            file_digest(path, tmp_path / "cache")


def test_places_elsewhere_are_told_from_paths():
    assert all(map(is_remote, ("s3://b/x", "gs:/b", "hdfs://h/x", Path("s3://b/x"))))
    assert not any(map(is_remote, ("runs/x", "/a/b", "./s3:x", "a b:c", "x", "", "~/a")))


def test_an_error_of_a_write_names_the_file(tmp_path):
    path = tmp_path / "summary.json"
    with pytest.raises(OSError, match=r"summary\.json"), whole_or_absent(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=r"^of a library$"), whole_or_absent(path):
        raise OSError("of a library")
