"""Files that are one JSON value: an array of rows, or an object of such arrays by split.

Streamed: of a file of any size a few MiB of text are in memory. Rows are counted from 1.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, BinaryIO

from causal_core.data.formats.lines import read_lines
from causal_core.data.formats.objects import Object, take_value
from causal_core.data.opened import opened
from causal_core.data.reading import MAX_ROW_BYTES, Reading
from causal_core.data.rules import split_name
from causal_core.data.schema import SPLITS, DataError
from causal_core.data.sources import Source, whole_document
from causal_core.visible_text import quoted

_PIECE = 2**20  # bytes read at once
_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(object_pairs_hook=Object)


def read_json(source: Source, reading: Reading) -> None:
    """Hands every row of a text file to `reading`: of its lines, or of the one value that it is."""
    try:
        with opened(source.path) as handle:
            kind = whole_document(handle.read(2**16))
        if kind is None:
            read_lines(source, reading)
            return
        with opened(source.path) as handle:
            _Document(handle, reading).read(kind)
    except OSError as problem:
        raise DataError.in_file(source.name, f"cannot be read: {problem.strerror}") from problem


class _NotJsonError(Exception):
    """Where a document stops being JSON, in words: nothing after that place can be read."""


class _Document:
    """The text of a file, of which the part around the place of reading is in memory."""

    def __init__(self, handle: BinaryIO, reading: Reading) -> None:
        self._handle = handle
        self._reading = reading
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._ended = False
        self._rows = 0

    def read(self, kind: str) -> None:
        """Hands all rows over; what is wrong with the document is a problem of the next row."""
        try:
            if kind == "array":
                self._array()
            else:
                self._splits()
            if self._peek():
                raise _NotJsonError(f"found {quoted(self._peek())} after its end")
        except _NotJsonError as problem:
            reason = f"not JSON: {problem}; nothing is read from there on"
            self._reading.refuse_unparsed(self._rows + 1, reason, "")

    def _splits(self) -> None:
        reading = self._reading
        self._expect("{")
        while True:
            key, _ = self._value()
            split = split_name(key)
            if split is None:
                raise DataError.in_file(
                    reading.source.name,
                    f"holds rows by split, and {quoted(key)} is no split; known: "
                    + ", ".join(SPLITS),
                )
            reading.part = split
            self._expect(":")
            self._array()
            if self._peek() != ",":
                break
            self._expect(",")
        self._expect("}")

    def _array(self) -> None:
        self._expect("[")
        if self._peek() == "]":
            self._expect("]")
            return
        while True:
            value, text = self._value()
            self._rows += 1
            take_value(value, self._rows, text, self._reading)
            if self._peek() != ",":
                break
            self._expect(",")
        self._expect("]")

    def _peek(self) -> str:
        """The next character that is not blank; nothing at the end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _expect(self, character: str) -> None:
        found = self._peek()
        if found != character:
            met = quoted(found) if found else "the end of the file"
            raise _NotJsonError(f"expected {character}, found {met}")
        self._at += 1

    def _value(self) -> tuple[Any, str]:
        """The next value, and its text where bad rows are kept."""
        self._peek()
        while True:
            problem: ValueError | None = None
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                raise _NotJsonError("nested too deeply") from None
            except ValueError as error:
                problem = error
            else:
                # `12` may be the beginning of `123`: only what follows shows that a number ended.
                if end < len(self._text) or self._ended:
                    text = self._text[self._at : end] if self._reading.wants_text else ""
                    self._at = end
                    return value, text
            if len(self._text) - self._at > MAX_ROW_BYTES:
                raise _NotJsonError(f"a row of more than {MAX_ROW_BYTES // 2**20} MiB")
            if not self._more() and problem is not None:
                raise _NotJsonError(
                    problem.msg if isinstance(problem, json.JSONDecodeError) else str(problem)
                )

    def _more(self) -> bool:
        """Reads on, and forgets what is behind; False at the end of the file."""
        if self._ended:
            return False
        kept = self._text[self._at :]
        # As much again, so that a long value is not tried over and over.
        data = self._handle.read(max(_PIECE, len(kept)))
        self._ended = not data
        try:
            self._text = kept + self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as problem:
            raise _NotJsonError(f"not UTF-8: {problem.reason}") from None
        self._at = 0
        return not self._ended
