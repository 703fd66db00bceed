"""What the tests of the memory plan share."""

from __future__ import annotations

import pytest

from tests.tiny_run import write_tiny_data, write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model and data for a few steps."""
    directory = tmp_path_factory.mktemp("tiny")
    model = write_tiny_model(directory / "model", hidden=128)
    sizes = {"train": 16, "validation": 4, "test_seen": 4, "test_novel": 4}
    return model, write_tiny_data(directory / "data", sizes)
