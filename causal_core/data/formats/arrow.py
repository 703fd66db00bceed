"""Arrow IPC files and streams (Feather version 2 too), as `datasets` and pandas save them.

A batch is decoded as a whole, and a compressed one may be far larger than it looks. So the lengths
that all batches say they have are added up before the first is decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pyarrow as pa

from causal_core.data.formats.columns import columns_to_read, take_batches
from causal_core.data.opened import bomb, most_decoded
from causal_core.data.reading import BATCH_ROWS, Reading
from causal_core.data.schema import DataError
from causal_core.data.sources import Source
from causal_core.visible_text import quoted

_MAGIC = b"ARROW1\0\0"  # of a file: a stream follows, and after it where its batches are
# Places of what is looked at in the tables of the format (its Message.fbs).
_HEADER_TYPE, _HEADER = 1, 2  # of a Message
_BUFFERS, _COMPRESSION = 2, 3  # of a RecordBatch
_DATA = 1  # of a DictionaryBatch
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # kinds of header
_MOST_BATCH_BYTES = 2**30  # decoded; writers make batches of thousands of rows


def read_arrow(source: Source, reading: Reading) -> None:
    """Hands every row of a file to `reading`.

    Raises:
        DataError: the file as a whole cannot be rows: damaged, without a column that every row
            needs, of nested columns, or far larger than it looks.
    """
    take_batches(source, _batches(source, reading), reading)


def _batches(source: Source, reading: Reading) -> Iterator[pa.RecordBatch]:
    try:
        with pa.memory_map(str(source.path)) as file:
            start = len(_MAGIC) if file.read(len(_MAGIC)) == _MAGIC else 0
            file.seek(start)
            _refuse_large(source, file)
            file.seek(start)
            stream = pa.ipc.open_stream(file)
            columns = columns_to_read(source, stream.schema, reading)
            for batch in stream:
                chosen = batch.select(columns)
                # Lengths and offsets come from the file. Invalid text is told by row.
                chosen.validate()
                for column in chosen.columns:
                    _validate(column)
                for first in range(0, chosen.num_rows, BATCH_ROWS):
                    yield chosen.slice(first, BATCH_ROWS)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as problem:
        reason = f"cannot be read as Arrow: {quoted(str(problem), limit=200)}"
        raise DataError.in_file(source.name, reason) from problem


def _validate(column: pa.Array) -> None:
    """Offsets within their buffers: nothing is read from beside them (`pa.ArrowInvalid`)."""
    as_bytes = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(column.type)
    (column if as_bytes is None else column.view(as_bytes)).validate(full=True)


def _refuse_large(source: Source, file: pa.NativeFile) -> None:
    """Adds up what the batches say they decode to (`DataError` where it is too much)."""
    most, declared = most_decoded(source.path), 0
    messages = pa.ipc.MessageReader.open_stream(file)
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        try:
            size = _decoded(message.metadata.to_pybytes(), message.body)
        except (struct.error, TypeError) as problem:  # a place beyond what there is
            raise pa.ArrowInvalid(f"a message is damaged ({problem})") from problem
        declared += size
        if declared > most:
            raise bomb(source.path, declared)
        if size > _MOST_BATCH_BYTES:
            raise DataError.in_file(
                source.name,
                f"has a compressed batch of {size // 2**20:,} MiB; write it in smaller ones",
            )


def _decoded(metadata: bytes, body: pa.Buffer) -> int:
    """Bytes that a message's buffers have when they are decoded; 0 where they are as they are."""
    message = _Table(metadata, _u32(metadata, 0))
    kind = message.field(_HEADER_TYPE)
    header = message.table(_HEADER)
    if kind is None or header is None:
        return 0
    if metadata[kind] == _DICTIONARY_BATCH:
        header = header.table(_DATA)
    elif metadata[kind] != _RECORD_BATCH:
        return 0
    if header is None or header.field(_COMPRESSION) is None:
        return 0
    place = header.field(_BUFFERS)
    if place is None:
        return 0
    vector = place + _u32(metadata, place)
    total = 0
    for number in range(_u32(metadata, vector)):
        offset, length = struct.unpack_from("<qq", metadata, vector + 4 + 16 * number)
        if length:
            # A compressed buffer begins with its length when decoded; -1: it is not compressed.
            (decoded,) = struct.unpack_from("<q", body, offset)
            total += decoded if decoded >= 0 else length
    return total


class _Table:
    """A table of a FlatBuffer."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data = data
        self._place = place

    def field(self, number: int) -> int | None:
        """Where the value of a field is; None where the table has none."""
        offsets = self._place - struct.unpack_from("<i", self._data, self._place)[0]
        entry = 4 + 2 * number
        if entry >= _u16(self._data, offsets):
            return None
        offset = _u16(self._data, offsets + entry)
        return self._place + offset if offset else None

    def table(self, number: int) -> _Table | None:
        place = self.field(number)
        return None if place is None else _Table(self._data, place + _u32(self._data, place))


def _u16(data: bytes, place: int) -> int:
    return int(struct.unpack_from("<H", data, place)[0])


def _u32(data: bytes, place: int) -> int:
    return int(struct.unpack_from("<I", data, place)[0])
