"""Which checkpoints a store keeps, and that an upload never looks whole before it is."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
from pyarrow import fs

from causal_core.checkpoints import store as store_module
from causal_core.checkpoints.checkpoint import MANIFEST
from causal_core.checkpoints.contents import _REQUIRED as REQUIRED
from causal_core.checkpoints.state import MAX_JSON_BYTES
from causal_core.checkpoints.store import CheckpointStore
from causal_core.errors import UserError


@pytest.fixture
def finished(tmp_path):
    """A directory with the files of a checkpoint; one that sorts after its manifest, too."""
    directory = tmp_path / "finished"
    directory.mkdir()
    for name in ("adapter.safetensors", MANIFEST, "tokenizer.json"):
        (directory / name).write_text(name)
    return directory


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path):
    location = tmp_path / "checkpoints"
    return CheckpointStore(str(location) if request.param == "local" else location.as_uri())


def test_the_newest_are_kept(store, finished):
    for step in (2, 4, 6, 8):
        store.put(finished, f"step-{step:08d}")
    store.keep_last(2)
    assert store.names() == ["step-00000006", "step-00000008"]


def test_the_manifest_is_uploaded_last(tmp_path, finished, monkeypatch):
    sent = []
    copy = fs.copy_files

    def recorded(source, target, **options):
        sent.append(target.rpartition("/")[2])
        copy(source, target, **options)

    monkeypatch.setattr(store_module.fs, "copy_files", recorded)
    CheckpointStore((tmp_path / "remote").as_uri()).put(finished, "step-00000002")
    assert sorted(sent[:-1]) == ["adapter.safetensors", "tokenizer.json"]
    assert sent[-1] == MANIFEST


@pytest.fixture
def listed(finished):
    """With a manifest that lists the other files."""
    entries = {
        path.name: {"bytes": path.stat().st_size, "sha256": "0" * 64}
        for path in finished.iterdir()
        if path.name != MANIFEST
    }
    for name in REQUIRED:
        (finished / name).touch()
        entries[name] = {"bytes": 0, "sha256": "0" * 64}
    manifest = {
        "format_version": 1, "step": 2, "config_fingerprint": "", "data_fingerprint": "",
        "base_fingerprint": "", "libraries": {}, "files": entries, "tensors": {},
    }  # fmt: skip
    (finished / MANIFEST).write_text(json.dumps(manifest))
    return finished


def downloaded(location, monkeypatch) -> list[str]:
    """What a look for the newest whole checkpoint downloads."""
    got = []
    copy = fs.copy_files
    with monkeypatch.context() as patch:
        patch.setattr(
            store_module.fs,
            "copy_files",
            lambda source, target, **o: (got.append(target.rpartition("/")[2]),
                                         copy(source, target, **o)),
        )  # fmt: skip
        with CheckpointStore(location.as_uri()).newest_whole() as newest:
            assert newest is None  # its files are no tensors
    return got


def test_only_what_a_manifest_lists_is_downloaded_and_only_in_its_size(
    tmp_path, listed, monkeypatch, caplog
):
    location = tmp_path / "remote"
    CheckpointStore(location.as_uri()).put(listed, "step-00000002")
    there = location / "step-00000002"
    (there / "not-listed").write_text("x")
    assert set(downloaded(location, monkeypatch)) == {p.name for p in listed.iterdir()}

    (there / "tokenizer.json").write_text("x" * 1000)
    assert downloaded(location, monkeypatch) == [MANIFEST]
    assert "tokenizer.json has 1,000 bytes, the manifest says 14" in caplog.text

    with (there / MANIFEST).open("r+b") as manifest:
        manifest.truncate(MAX_JSON_BYTES + 1)  # sparse
    assert downloaded(location, monkeypatch) == []
    assert "no manifest has more than" in caplog.text


def test_a_download_that_has_no_room_is_refused_before_it_begins(tmp_path, listed, monkeypatch):
    location = tmp_path / "remote"
    CheckpointStore(location.as_uri()).put(listed, "step-00000002")
    full = shutil.disk_usage(tmp_path)._replace(free=3)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: full)
    with pytest.raises(UserError, match=r"step-00000002 has \d+ bytes .* room for 3: .*TMPDIR"):
        downloaded(location, monkeypatch)


def test_a_location_below_a_file_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"is no directory.*checkpoint\.storage"):
        CheckpointStore(str(tmp_path / "file" / "checkpoints"))


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to(path), lambda path: path.write_text("x")]
)
def test_what_is_no_directory_is_replaced_and_removed_without_waiting(tmp_path, finished, make):
    store = CheckpointStore(str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()
    for step in (2, 4):
        make(tmp_path / "kept" / f"step-{step:08d}")
    store.put(finished, "step-00000004")
    store.keep_last(1)
    assert store.names() == ["step-00000004"] and len(list((tmp_path / "kept").iterdir())) == 1
    assert (tmp_path / "kept" / "step-00000004" / MANIFEST).is_file()


def test_half_a_copy_is_not_left_where_there_is_no_room(tmp_path, finished, monkeypatch):
    def full(source, target):
        target.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr("shutil.copy2", full)
    with pytest.raises(OSError, match=r"No space left on device: '[^']*'$"):
        CheckpointStore(str(tmp_path / "kept")).put(finished, "step-00000002")
    assert list((tmp_path / "kept").iterdir()) == []
