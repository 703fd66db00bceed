"""Files of object stores, through pyarrow's own S3 client against a server that answers as one."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path

import pytest

from causal_core.data import remote
from causal_core.data.reader import read_triplets
from causal_core.data.schema import DataError
from tests.causal_core.data.test_reader import row


class Store(http.server.BaseHTTPRequestHandler):
    """GET and HEAD of objects by their path."""

    objects: dict[str, bytes] = {}
    gets = 0

    def answer(self, with_body: bool) -> None:
        content = self.objects.get(self.path.partition("?")[0])
        if content is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, status = 0, 200
        if (wanted := self.headers.get("Range")) is not None:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, status = int(start), 206
            part = content[first : int(end) + 1 if end else None]
        else:
            part = content
        self.send_response(status)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        if status == 206:
            place = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
            self.send_header("Content-Range", place)
        self.end_headers()
        if with_body:
            self.wfile.write(part)

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        type(self).gets += 1
        self.answer(True)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store(monkeypatch, tmp_path):
    """Objects by `/bucket/name`, and what a location of the store ends with."""
    monkeypatch.setenv("CAUSAL_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setattr(Store, "objects", {})
    monkeypatch.setattr(Store, "gets", 0)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    place = f"?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
    yield Store.objects, place
    server.shutdown()
    server.server_close()
    thread.join()


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in rows)


def test_an_object_is_read_as_a_file_and_copied_once(store, tmp_path):
    objects, place = store
    bad = {"id": "bad", "split": "train"}
    content = lines(row(id=..., split="train"), row(id=...), bad)
    objects["/bucket/folder/mine.jsonl"] = content
    location = f"s3://bucket/folder/mine.jsonl{place}"
    result = read_triplets(location, on_error="collect")
    assert result.table["id"].to_pylist() == ["mine:1", "mine:2"]
    assert all(problem.file == location for problem in result.errors) and result.errors
    gets = Store.gets
    assert read_triplets(f"{location}#train", on_error="collect").table.num_rows == 1
    assert Store.gets == gets  # from the copy
    objects["/bucket/folder/mine.jsonl"] = lines(row(), row(id="b"), row(id="c"))
    assert read_triplets(location).table.num_rows == 3
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_what_is_not_there_or_too_large_is_said(store, monkeypatch):
    objects, place = store
    objects["/bucket/x.jsonl"] = lines(row())
    with pytest.raises(DataError, match="cannot be fetched: no such file"):
        read_triplets(f"s3://bucket/none.jsonl{place}")
    monkeypatch.setattr(remote, "_MOST_BYTES", 10)
    with pytest.raises(DataError, match="larger than any of triplets"):
        read_triplets(f"s3://bucket/x.jsonl{place}")


def test_a_copy_that_ends_early_is_none(tmp_path):
    from pyarrow import fs

    (tmp_path / "x").write_bytes(b"12345")
    for size in (4, 6):
        with pytest.raises(OSError, match="another number of bytes"):
            remote._copy(fs.LocalFileSystem(), str(tmp_path / "x"), tmp_path / "y", size)


def test_no_password_of_a_location_is_repeated(store):
    with pytest.raises(DataError, match="no such file") as caught:
        read_triplets(f"s3://user:secret@bucket/none.jsonl{store[1]}")
    assert "secret" not in str(caught.value)


def test_only_stores_are_fetched():
    assert remote.is_stored("s3://b/x") and remote.is_stored("gs://b/x")
    assert not any(map(remote.is_stored, ("s3", "https://b/x", "file:///x", str(Path("s3:/b")))))
