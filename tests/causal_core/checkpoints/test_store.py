"""Which checkpoints a store keeps, and that an upload never looks whole before it is."""

from __future__ import annotations

import pytest
from pyarrow import fs

from causal_core.checkpoints import store as store_module
from causal_core.checkpoints.checkpoint import MANIFEST
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


def test_a_location_below_a_file_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"is no directory.*checkpoint\.storage"):
        CheckpointStore(str(tmp_path / "file" / "checkpoints"))
