"""A hub that does not answer ends a command in seconds, in one sentence; its cache still serves."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from huggingface_hub import constants

from causal_core.checkpoints.adapter import adapter_directory
from causal_core.config import ModelSection
from causal_core.errors import CheckpointError, ModelError, UserError
from causal_core.pretrained import hub
from causal_core.pretrained.loading import load_architecture, load_tokenizer
from tests.tiny_run import write_tiny_model

MODEL = "owner/thing"


@pytest.fixture
def silent():
    """The address of a server that takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def closed():
    """The address of a port where nothing listens."""
    with socket.socket() as taken:  # bound, so that nobody else takes it
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def at(monkeypatch, tmp_path):
    """Lets the hub be at an address, with an empty cache, for a test."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_found", {})
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    hub._silence.cache_clear()
    yield lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)
    hub._silence.cache_clear()


@contextlib.contextmanager
def answering(status: int):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("kind", ["silent", "closed"])
def test_what_does_not_answer_is_told_once_with_what_to_do(kind, at, request):
    address = request.getfixturevalue(kind)
    at(address)
    begun = time.monotonic()
    for load in (load_tokenizer, load_architecture):
        with pytest.raises(ModelError) as refused:
            load(ModelSection(name_or_path=MODEL))
        said = str(refused.value)
        assert f"{address} does not answer" in said and "hf download owner/thing" in said
        assert "local directory" in said and "\n" not in said and "trust_remote_code" not in said
    with pytest.raises(CheckpointError, match="does not answer"):
        adapter_directory(MODEL)
    with pytest.raises(UserError, match="nothing can be uploaded"):
        hub.check_hub()
    assert time.monotonic() - begun < 20  # the hub's own client waits a minute for one file


def test_an_answer_that_trickles_in_is_waited_for_no_longer(at, silent, monkeypatch):
    class Session:
        def head(self, address, timeout):
            time.sleep(60)

    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    at(silent)
    begun = time.monotonic()
    hub.ask_hub(MODEL)
    assert constants.HF_HUB_OFFLINE and time.monotonic() - begun < 20


@pytest.mark.parametrize("status", [200, 302, 404, 503])
def test_a_hub_that_answers_anything_is_asked(status, at):
    with answering(status) as address:
        at(address)
        hub.ask_hub(MODEL)
        hub.check_hub()
    assert not constants.HF_HUB_OFFLINE and hub.hub_refused(MODEL) is None


def test_a_user_who_is_offline_is_asked_to_change_that(at, silent, monkeypatch):
    at(silent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_asked", lambda _: pytest.fail("the hub was asked"))
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set, and the hub's cache"):
        load_tokenizer(ModelSection(name_or_path=MODEL))


def test_a_local_directory_asks_nobody(at, silent, monkeypatch, tiny_model_directory):
    at(silent)
    monkeypatch.setattr(hub, "_asked", lambda _: pytest.fail("the hub was asked"))
    assert load_tokenizer(ModelSection(name_or_path=str(tiny_model_directory))) is not None


def test_the_cache_serves_where_the_hub_does_not(silent, tmp_path):
    commit = "a" * 40
    repository = tmp_path / "hub" / "models--owner--thing"
    model = repository / "snapshots" / commit
    write_tiny_model(model)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    load = (
        "import sys; from causal_core.config import ModelSection;"
        "from causal_core.pretrained.loading import load_tokenizer;"
        "print(len(load_tokenizer(ModelSection(name_or_path=sys.argv[1]))))"
    )
    own = {"HF_ENDPOINT": silent, "HF_HUB_CACHE": str(tmp_path / "hub"),
           "HF_HUB_ETAG_TIMEOUT": "1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", load, MODEL],
        env={**os.environ, **own}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    tokens = len(load_tokenizer(ModelSection(name_or_path=str(model))))
    assert done.returncode == 0 and done.stdout.strip() == str(tokens), done.stderr
