"""A Ray cluster of real node processes on this machine, behind a token, for tests.

Every process of the cluster carries a mark in its environment, so that a node can be killed as a
whole (as a lost machine is) and nothing else on this machine is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

_MARK = "CAUSAL_RAY_TEST_NODE"
_PATIENCE_SECONDS = 600.0  # for what hangs; on a machine that others use, a start takes minutes


class RayNodes:
    """A head without CPUs for workers, and worker nodes; use as a context manager."""

    def __init__(self, variables: dict[str, str] | None = None) -> None:
        self._identity = secrets.token_hex(4)
        self._folder = tempfile.TemporaryDirectory(
            prefix="cn", dir="/tmp", ignore_cleanup_errors=True
        )
        self.folder = Path(self._folder.name)
        self.token = secrets.token_hex(32)
        self._variables = variables or {}
        self._gcs_port, self.dashboard_port = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.dashboard_port}"

    def __enter__(self) -> RayNodes:
        try:
            self._start(
                "head", 0, "--head", f"--port={self._gcs_port}",
                "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}",
                f"--ray-client-server-port={free_port()}",
            )  # fmt: skip
            self._wait(lambda: self.http_status("/api/version", self.token) == 200, "the head")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes():
            _kill(process)
        self._folder.cleanup()

    @property
    def sessions(self) -> list[Path]:
        """Ray's session directory of every node there has been, with its logs."""
        return [path for path in self.folder.glob("*/session_*") if not path.is_symlink()]

    def add_node(self, name: str, cpus: int = 1, accelerator_type: str | None = None) -> None:
        """Starts a worker node and waits until the head knows it."""
        typed = {f"accelerator_type:{accelerator_type}": 1} if accelerator_type else {}
        self._start(
            name, cpus, f"--address=127.0.0.1:{self._gcs_port}",
            f"--resources={json.dumps(typed)}",
        )  # fmt: skip
        self._wait(lambda: name in self.alive(), f"node {name}")

    def kill_node(self, name: str) -> list[str]:
        """kill -9 of every process of a node at once; returns what they were."""
        victims = self._processes(name)
        titles = [_title(process) for process in victims]
        for process in victims:
            _kill(process)
        assert any("raylet" in title for title in titles), titles
        return titles

    def preempt_node(self, name: str) -> None:
        """SIGTERM to a node's `ray start --block`, as a cloud or Kubernetes takes a machine away:
        Ray drains the node for a while and then ends it."""
        for process in self._processes(name):
            if "--block" in _title(process):
                process.terminate()

    def titles(self, name: str) -> list[str]:
        """What runs on a node."""
        return [_title(process) for process in self._processes(name)]

    def alive(self) -> list[str]:
        """Names of the nodes that the head believes alive."""
        import json

        try:
            body = json.loads(self.get("/api/v0/nodes", self.token))
        except OSError:
            return []
        nodes = body["data"]["result"]["result"]
        return [node["node_name"] for node in nodes if node["state"] == "ALIVE"]

    def prometheus(self) -> str:
        """What a Prometheus server would scrape from all nodes."""
        import json

        nodes = json.loads(self.get("/nodes?view=summary", self.token))["data"]["summary"]
        texts = []
        for raylet in (node["raylet"] for node in nodes if node["raylet"]["state"] == "ALIVE"):
            url = f"http://127.0.0.1:{raylet['metricsExportPort']}/metrics"
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
                texts.append(answer.read().decode())
        return "\n".join(texts)

    def environment(self, token: str | None = None) -> dict[str, str]:
        """The environment of a client; `token` is the cluster's, another, or "" for none."""
        found = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("RAY_") and key != _MARK
        }
        found["PATH"] = f"{Path(sys.executable).parent}:{found['PATH']}"
        found |= {"RAY_AUTH_MODE": "token", "HOME": str(self._home())}
        found["RAY_API_SERVER_ADDRESS"] = self.address
        chosen = self.token if token is None else token
        return found | ({"RAY_AUTH_TOKEN": chosen} if chosen else {})

    def get(self, path: str, token: str = "") -> str:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.address + path, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode())

    def http_status(self, path: str, token: str = "") -> int:
        """Status of a GET; 0 when nothing answers."""
        try:
            self.get(path, token)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0
        return 200

    def _start(self, name: str, cpus: int, *options: str) -> None:
        empty = self.folder / "cwd"  # Ray's processes import from their working directory
        empty.mkdir(exist_ok=True)
        # A session directory for each, as on machines apart: in one of all nodes, each unpacks a
        # job's upload by taking away the one that the job runs from.
        environment = {
            **self.environment(),
            **self._variables,
            _MARK: f"{self._identity}-{name}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_metrics_report_interval_ms": "1000",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
            "TMPDIR": str(empty),
        }
        environment.pop("RAY_API_SERVER_ADDRESS")
        with (self.folder / f"{name}.log").open("w") as log:
            subprocess.Popen(
                [str(Path(sys.executable).with_name("ray")), "start", "--block",
                 f"--num-cpus={cpus}", f"--node-name={name}", "--object-store-memory=100000000",
                 "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0",
                 "--disable-usage-stats", f"--temp-dir={self.folder / name}", *options],
                stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=empty,
                start_new_session=True,
            )  # fmt: skip

    def _home(self) -> Path:
        home = self.folder / "home"  # no token file of this machine's user
        home.mkdir(exist_ok=True)
        return home

    def _wait(self, condition, what: str) -> None:
        end = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > end:
                logs = "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))
                raise AssertionError(f"no {what} in {_PATIENCE_SECONDS} s:\n{logs}")
            time.sleep(0.3)

    def _processes(self, name: str = "") -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mark = process.environ().get(_MARK, "")
                if mark.startswith(f"{self._identity}-{name}"):
                    found.append(process)
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGKILL)
