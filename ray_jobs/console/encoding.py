"""Output that arrives whatever the terminal's encoding: LANG=C, latin-1 logs, PYTHONIOENCODING.

A table that is printed after hours of work must not fail on the bar or the no-break space in it.
"""

from __future__ import annotations

import codecs
import io
import sys

_ERRORS = "causal-shown"
# What this program prints itself; anything else becomes an escape such as `\xe9`.
_INSTEAD = {
    "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2013": "-", "\u2014": "-", "\u2212": "-",
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2026": "...", "\u2264": "<=",
    "\u2265": ">=", "\u00d7": "x", "\u00b1": "+-", "\u2588": "#", "\u2192": "->", "\u00b7": ".",
    "\u2022": "*",
}  # fmt: skip


def encode_anything() -> None:
    """Makes stdout and stderr write signs that their encoding lacks in another way."""
    codecs.register_error(_ERRORS, _instead)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors=_ERRORS)


def _instead(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    shown = (_INSTEAD.get(sign) or sign.encode("ascii", "backslashreplace").decode("ascii")
             for sign in found)  # fmt: skip
    return "".join(shown), error.end
