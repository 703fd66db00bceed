"""Requests to a job server that may be anything: bounded in bytes and seconds, no redirects.

Ray's own client reads a body of any length for any time, and follows a redirect with the token.
"""

from __future__ import annotations

import functools
import io
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from causal_core.errors import RunFailedError

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0  # without a byte
ANSWER_SECONDS = 300.0  # of a whole answer
UPLOAD_SECONDS = 3600.0  # more, where something is sent
MOST_BYTES = 64 * 2**20  # of an answer; a job's whole log is the largest
_CHUNK = 2**16


class _Bounded:
    """Replaces the one method through which Ray's clients send requests."""

    _address: str
    _cookies: Any
    _headers: Any
    _verify: Any

    def _do_request(
        self,
        method: str,
        endpoint: str,
        *,
        data: Any = None,
        json_data: Any = None,
        params: Any = None,
        timeout: Any = None,  # Ray's own, of one wait; see above
    ) -> Any:
        sends = ANSWER_SECONDS + (0.0 if data is None else UPLOAD_SECONDS)
        return within(
            sends,
            functools.partial(
                self._asked, method, endpoint, data=data, json_data=json_data, params=params
            ),
            self._address,
        )

    def _asked(self, method: str, endpoint: str, *, data: Any, json_data: Any, params: Any) -> Any:
        import requests
        from ray._private.authentication.http_token_authentication import (
            format_authentication_http_error,
        )
        from ray.exceptions import AuthenticationError
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        with requests.request(
            method,
            self._address + endpoint,
            cookies=self._cookies,
            data=data,
            json=json_data,
            headers=self._headers,
            verify=self._verify,
            stream=True,
            timeout=(CONNECT_SECONDS, SILENCE_SECONDS),
            allow_redirects=False,
            params=params,
        ) as response:
            answer = requests.Response()
            answer.status_code, answer.url = response.status_code, response.url
            answer.headers, answer.encoding = response.headers, response.encoding or "utf-8"
            try:
                answer.raw = io.BytesIO(_body(response, self._address))
            except ReadTimeoutError as error:
                raise requests.exceptions.ReadTimeout(error) from error
            except HTTPError as error:  # cut off, or not what its headers promise
                raise requests.exceptions.ConnectionError(error) from error
        if problem := format_authentication_http_error(answer.status_code, answer.text):
            raise AuthenticationError(problem)
        return answer


def within(seconds: float, ask: Callable[[], Any], address: str) -> Any:
    """The answer, for which a thread waits that is left behind: no timeout of a socket ends headers
    that trickle in, or interim answers without end.

    Raises:
        RunFailedError: it takes longer.
    """
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((ask(), None))
        except BaseException as error:  # noqa: BLE001 - raised below, where it was asked
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise RunFailedError(f"{address} did not finish its answer in {seconds:.0f} s") from None
    if error is not None:
        raise error
    return answer


def _body(response: Any, address: str) -> bytes:
    """The decoded body.

    Raises:
        RunFailedError: it is too large, or takes too long.
    """
    found, end = bytearray(), time.monotonic() + ANSWER_SECONDS
    # `read1` gives what is there; `iter_content` would wait for a whole chunk, however long.
    while chunk := response.raw.read1(_CHUNK, decode_content=True):
        found += chunk
        if len(found) > MOST_BYTES:
            raise RunFailedError(
                f"{address} answers with more than {MOST_BYTES >> 20} MiB: it is no job server of "
                "Ray, or a job's log is too long for one answer (causal jobs logs JOB --follow)"
            )
        if time.monotonic() > end:
            raise RunFailedError(f"{address} did not finish its answer in {ANSWER_SECONDS:.0f} s")
    return bytes(found)


@functools.cache
def job_client() -> Any:
    """Ray's client of jobs, bounded."""
    from ray.job_submission import JobSubmissionClient

    return type("BoundedJobClient", (_Bounded, JobSubmissionClient), {})


@functools.cache
def state_client() -> Any:
    """Ray's client of the cluster's state, bounded."""
    from ray.util.state import StateApiClient

    return type("BoundedStateClient", (_Bounded, StateApiClient), {})
