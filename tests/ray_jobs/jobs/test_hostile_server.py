"""Whatever answers at a job server's address costs one line, bounded memory and bounded time."""

from __future__ import annotations

import http.server
import json
import logging
import threading
import time

import pytest
import ray  # noqa: F401 - it reads its variables here, before a test sets them

from causal_core.errors import RunFailedError, UserError
from ray_jobs.jobs import bounded
from ray_jobs.jobs import client as client_module
from ray_jobs.jobs.client import cluster_nodes, connect, explained, exposure, job_server_address
from ray_jobs.jobs.follow import LogLines

VERSION = {"ray_version": "2.60.0", "ray_commit": "", "version": "4", "session_name": "s"}


class Server(http.server.ThreadingHTTPServer):
    """Answers every request as `answer(handler)` does, and keeps what was asked."""

    daemon_threads = True

    def __init__(self, answer):
        self.answer, self.seen = answer, []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        self.server.answer(self)

    do_POST = do_PUT = do_GET

    def log_message(self, *_):
        pass

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-secret-token-of-this-test")
    servers = []

    def start(answer):
        server = Server(answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"x" * 2**16)
    except OSError:  # the client has left
        pass


ANSWERS = {
    "html": lambda h: h.send(200, b"<html>\x1b[31m\x1b]8;;http://evil\x07 hello</html>"),
    "empty": lambda h: h.send(200),
    "another shape": lambda h: h.send(200, b"[1, 2]", Content_Type="application/json"),
    "null": lambda h: h.send(200, b"null", Content_Type="application/json"),
    "500": lambda h: h.send(500, b"\x1b[31mRED\x1b]0;title\x07\x1b[2J error\n"),
    "redirect": lambda h: h.send(302, Location="http://127.0.0.1:1/elsewhere"),
    "endless": endless,
    "cut off": lambda h: h.send(200, b"{", Content_Length="10"),
    "nested": lambda h: h.send(200, b"[" * 100_000, Content_Type="application/json"),
    "no gzip": lambda h: h.send(200, b"{}", Content_Encoding="gzip"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_of_any_kind_is_one_harmless_line(kind, serve, monkeypatch):
    monkeypatch.setattr(bounded, "MOST_BYTES", 2**20)
    server = serve(ANSWERS[kind])
    for ask in (lambda: connect(server.url), lambda: cluster_nodes(server.url)):
        with pytest.raises((UserError, RunFailedError)) as caught:
            ask()
        message = str(caught.value)
        assert message.isprintable() and len(message) < 600
        assert "a-secret-token-of-this-test" not in message
    if kind == "redirect":  # a token goes to no other place than the one that was named
        assert all(path != "/elsewhere" for _, path, _ in server.seen)


@pytest.mark.parametrize(
    ("status", "says"), [(401, "needs a token, none is set"), (403, "refused this environment's")]
)
def test_a_token_that_is_missing_or_wrong_is_told_apart(status, says, serve):
    with pytest.raises(UserError, match=f"{says}.*Set RAY_AUTH_TOKEN"):
        connect(serve(lambda handler: handler.send(status)).url)


def test_silence_and_a_trickle_end(serve, monkeypatch):
    monkeypatch.setattr(bounded, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(bounded, "ANSWER_SECONDS", 1.0)
    left = threading.Event()

    def trickle(handler):
        handler.send_response(200)
        handler.end_headers()
        while not left.wait(0.05):
            handler.wfile.write(b" ")

    def half(handler):
        handler.send(200, b"{", Content_Length="10")
        handler.wfile.flush()
        left.wait(20)

    begin = time.monotonic()
    with pytest.raises(RunFailedError, match="does not answer"):
        connect(serve(lambda h: left.wait(20)).url)
    with pytest.raises(RunFailedError, match="does not answer"):
        connect(serve(half).url)
    with pytest.raises(RunFailedError, match="did not finish its answer"):
        connect(serve(trickle).url)
    left.set()
    assert time.monotonic() - begin < 15


def test_headers_without_end_end(serve, monkeypatch):
    monkeypatch.setattr(bounded, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(client_module, "_VERSION_SECONDS", 0.5)
    left = threading.Event()

    def headers(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not left.wait(0.02):
            handler.wfile.write(b"x")

    def interim(handler):
        while not left.wait(0.02):
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    begin = time.monotonic()
    for answer in (headers, interim):
        server = serve(answer)
        with pytest.raises(RunFailedError, match="did not finish its answer"):
            connect(server.url)
        assert exposure(server.url) == []
    left.set()
    assert time.monotonic() - begin < 15


@pytest.mark.parametrize(
    "address",
    ["http://[::1", "http://h:99999", "http://h:x", "ftp://h", "http://", "h:8265", "http://h\nh",
     "http://h\t:1", "http://h h", "http://h/\x1b[2J"],
)  # fmt: skip
def test_an_address_that_is_none_is_said(address):
    with pytest.raises(UserError, match="expected the URL of a cluster's job server") as refused:
        job_server_address(address)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("amount", ["many", None, [1], True, -1, 10**400, float("nan")])
def test_resources_that_are_no_numbers_are_no_answer_of_ray(serve, amount):
    node = {
        "node_id": "a", "node_name": "n", "node_ip": "1", "is_head_node": True, "state": "ALIVE",
        "state_message": None, "resources_total": {"CPU": amount}, "labels": {},
        "start_time_ms": 1, "end_time_ms": 0,
    }  # fmt: skip
    counts = {"total": 1, "num_after_truncation": 1, "num_filtered": 1}
    found = {"result": [node], **counts, "partial_failure_warning": "", "warnings": []}
    nodes = {"result": True, "msg": "", "data": {"result": found}}

    def answer(handler):
        body = VERSION if "version" in handler.path else nodes
        handler.send(200, json.dumps(body).encode(), Content_Type="application/json")

    with pytest.raises(UserError, match=r"not as a job server of Ray does .resources of a node"):
        cluster_nodes(serve(answer).url)


def test_no_agent_yet_is_asked_again(serve, monkeypatch):
    from ray_jobs.jobs import submit

    monkeypatch.setattr(submit, "_AGENT_PAUSE_SECONDS", 0.01)
    posts = []

    def answer(handler):
        if handler.command == "GET":
            return handler.send(200, json.dumps(VERSION).encode())
        handler.rfile.read(int(handler.headers["Content-Length"]))
        posts.append(handler.path)
        if len(posts) < 3:
            return handler.send(500, b"No available agent to submit job, please try again later.")
        return handler.send(200, b'{"job_id": "j", "submission_id": "j"}')

    server = serve(answer)
    client = connect(server.url)
    chatty = logging.getLogger("ray.dashboard.modules.job.sdk")
    assert not chatty.isEnabledFor(logging.INFO)  # it tells of every socket
    assert submit._submitted(client, server.url, entrypoint="true") == "j"
    assert len(posts) == 3


def test_a_line_without_an_end_takes_bounded_memory():
    written = []
    lines = LogLines(written.append)
    for _ in range(50):
        lines.take("x" * 10_000)
        assert len(lines._rest) <= 2**16
    lines.finish()
    assert sum(map(len, written)) == 500_000


def test_errors_of_this_program_pass_unchanged():
    with pytest.raises(RunFailedError, match=r"^as it was$"), explained("http://127.0.0.1:1"):
        raise RunFailedError("as it was")
