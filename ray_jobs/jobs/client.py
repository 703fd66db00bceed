"""The connection to a cluster's job server, and what its errors mean to a user."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from causal_core.errors import RunFailedError, UserError
from causal_core.visible_text import shown, visible
from ray_jobs.jobs.bounded import job_client, state_client, within

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_VERSION_SECONDS = 10.0  # for a request without a token
_MOST_OF_A_RESOURCE = 2**60  # bytes of memory among them
_MOST_SHOWN = 300  # characters of a server's own words
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def job_server_address(given: str | None) -> str:
    """The job server's URL: the option, else RAY_API_SERVER_ADDRESS, else this machine's."""
    address = given or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    try:
        parts = urlsplit(address)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        # Line breaks and tabs, which `urlsplit` leaves out, and spaces: they would be sent.
        whole = whole and address.isprintable() and " " not in address
    except ValueError:  # a port that is none, or half an IPv6 address
        whole = False
    if not whole:
        raise UserError(
            f"--address {shown(address)}: expected the URL of a cluster's job server, e.g. "
            f"{DEFAULT_ADDRESS} (the port of the dashboard, not Ray's own port)"
        )
    return address.rstrip("/")


def connect(address: str) -> JobSubmissionClient:
    """A client of the job server, with the token of this environment.

    Raises:
        UserError: nothing answers there, the token is missing or wrong, or it is not a job server.
    """
    # Ray reads it when it is imported. A token is sent unless the user has turned this off.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    client_of = job_client()  # importing it sets the levels that are set here
    for module in ("dashboard_sdk", "job.sdk"):  # they tell of every upload and socket
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    with explained(address):
        client: JobSubmissionClient = client_of(address)
        return client


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """Turns what Ray raises for a request into errors that say what to do."""
    import requests
    from ray.exceptions import AuthenticationError
    from ray.util.state.exception import RayStateApiException

    try:
        yield
    except AuthenticationError as error:
        wrong = "Authentication failed" in str(error)  # HTTP 403
        problem = "refused this environment's token" if wrong else "needs a token, none is set"
        raise UserError(
            f"{address} {problem}. Set RAY_AUTH_TOKEN, or "
            "RAY_AUTH_TOKEN_PATH to a file, to the cluster's token (on its head: "
            "`ray get-auth-token`)"
        ) from error
    except (ConnectionError, requests.exceptions.ConnectionError) as error:
        raise UserError(
            f"nothing answers at {address}. Is the cluster up, and the tunnel or port-forward to "
            "its dashboard port (8265) open?"
        ) from error
    except requests.exceptions.Timeout as error:
        raise RunFailedError(
            f"{address} accepts connections and does not answer: is it Ray's job server (the port "
            "of the dashboard, 8265)?"
        ) from error
    except (RunFailedError, UserError):
        raise
    except RecursionError:  # of nested JSON
        raise UserError(
            f"{address} answers, but not as a job server of Ray does (nested too deeply): give the "
            "port of the dashboard"
        ) from None
    except RuntimeError as error:
        if "status code 404" in str(error):
            raise UserError(f"{address}: {_first_line(error)}") from error
        raise RunFailedError(f"{address}: {_first_line(error)}") from error
    except (
        requests.exceptions.RequestException,
        RayStateApiException,
        ValueError,  # no JSON, or JSON of another shape
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise UserError(
            f"{address} answers, but not as a job server of Ray does ({_first_line(error)}): give "
            "the port of the dashboard"
        ) from error


def exposure(address: str) -> list[str]:
    """What is unsafe about a job server that was reached; one sentence each."""
    if not _answers_without_token(address):
        return []
    return [
        f"{address} accepts jobs from anyone who reaches it: start Ray with "
        "RAY_AUTH_MODE=token (cluster/README.md)"
    ]


def unencrypted(address: str) -> list[str]:
    """What is unsafe about the way to an address, known before anything is sent there."""
    parts = urlsplit(address)
    if parts.scheme != "http" or parts.hostname in _LOOPBACK:
        return []
    return [
        f"the token travels unencrypted to {parts.hostname}: use an SSH tunnel, "
        "kubectl port-forward or https"
    ]


def _answers_without_token(address: str) -> bool:
    import requests

    def ask() -> bool:
        url = f"{address}/api/version"
        with requests.get(url, stream=True, timeout=5, allow_redirects=False) as answer:
            return answer.status_code == requests.codes.ok

    try:
        return bool(within(_VERSION_SECONDS, ask, address))
    except (OSError, ValueError, RunFailedError):  # what requests raises is an OSError
        return False


def cluster_nodes(address: str) -> list[dict[str, Any]]:
    """`name` and `resources` (name -> amount) of every node that is alive."""
    from ray.util.state.common import ListApiOptions, StateResource

    with explained(address):
        # Ray takes a node that died for output that is missing, and would raise.
        nodes = state_client()(address=address).list(
            StateResource.NODES,
            options=ListApiOptions(limit=10_000, filters=[("state", "=", "ALIVE")]),
            raise_on_missing_output=False,
        )
        found = [(node.node_name, node.resources_total or {}) for node in nodes]
        if not all(_is_amount(amount) for _, has in found for amount in has.values()):
            raise ValueError("resources of a node are no numbers")
    return [{"name": name, "resources": has} for name, has in found]


def _is_amount(found: object) -> bool:
    return type(found) in (int, float) and 0 <= found <= _MOST_OF_A_RESOURCE  # type: ignore[operator]


def _first_line(error: Exception) -> str:
    """Short and harmless: whoever answers may have written it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = visible(lines[0])
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Job server; default: $RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265.",
    ),
]
