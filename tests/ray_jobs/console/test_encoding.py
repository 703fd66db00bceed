"""What is printed arrives in every encoding; nothing fails on a sign that it lacks."""

from __future__ import annotations

import io

import pytest

from ray_jobs.console.encoding import encode_anything
from ray_jobs.console.exit_codes import exit_with_code


def printed(monkeypatch, encoding, text, errors="strict"):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding, errors=errors, write_through=True)
    monkeypatch.setattr("sys.stdout", stream)
    with pytest.raises(SystemExit) as leaving:
        exit_with_code(lambda: print(text, end=""))
    assert leaving.value.code == 0
    return written.getvalue()


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", b"12 MiB ## <= 3 - caf\\xe9 \\u65e5 \\ud800"),
        ("latin-1", b"12\xa0MiB ## <= 3 - caf\xe9 \\u65e5 \\ud800"),
        ("utf-8", "12\u00a0MiB \u2588\u2588 \u2264 3 \u2013 café 日 \\ud800".encode()),
    ],
)
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_signs_that_an_encoding_lacks_are_written_otherwise(
    monkeypatch, encoding, expected, errors
):
    text = "12\u00a0MiB \u2588\u2588 \u2264 3 \u2013 café 日 \ud800"
    assert printed(monkeypatch, encoding, text, errors) == expected


def test_what_the_user_chose_stays(monkeypatch):
    assert printed(monkeypatch, "ascii", "é", "ignore") == b""


def test_no_stream_at_all_is_fine(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    encode_anything()
