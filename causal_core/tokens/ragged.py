"""Sequences of different lengths in one array, so that many of them are worked on at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import pyarrow as pa

TOKEN_LIST = pa.list_(pa.int32())


@dataclass(frozen=True)
class Ragged:
    """Sequences of token ids, one after the other."""

    values: np.ndarray  # int32, [tokens]
    offsets: np.ndarray  # int64, [sequences + 1]: where each begins, and where the last one ends

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int]]) -> Ragged:
        """Of lists of ids."""
        sequences = list(sequences)
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        offsets = _offsets(lengths)
        flat = chain.from_iterable(sequences)
        return cls(np.fromiter(flat, np.int32, int(offsets[-1])), offsets)

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """The sequences of all parts, one part after the other."""
        if not parts:
            return cls.of([])
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(np.concatenate([part.values for part in parts]), _offsets(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Of the sequences, [sequences]."""
        return np.diff(self.offsets)

    def lists(self) -> list[list[int]]:
        """The sequences as lists."""
        values, ends = self.values.tolist(), self.offsets.tolist()
        return [values[start:end] for start, end in pairwise(ends)]

    def take(
        self,
        chosen: np.ndarray,
        first: np.ndarray | int = 0,
        lengths: np.ndarray | None = None,
    ) -> Ragged:
        """The sequences with these numbers; of each the tokens from `first` on, `lengths` of them
        where given, else all."""
        if lengths is None:
            lengths = self.lengths[chosen] - first
        offsets = _offsets(lengths)
        return Ragged(self.values[_places(self.offsets[chosen] + first, offsets)], offsets)

    def beside(self, other: Ragged) -> Ragged:
        """Each sequence with the other's of the same number after it."""
        lengths, more = self.lengths, other.lengths
        offsets = _offsets(lengths + more)
        values = np.empty(int(offsets[-1]), np.int32)
        values[_places(offsets[:-1], self.offsets)] = self.values
        values[_places(offsets[:-1] + lengths, other.offsets)] = other.values
        return Ragged(values, offsets)

    def shared_with(self, other: Ragged) -> np.ndarray:
        """How many tokens each has in common with the other's of the same number, from the first
        on, [sequences]."""
        shorter = np.minimum(self.lengths, other.lengths)
        offsets = _offsets(shorter)
        one = self.values[_places(self.offsets[:-1], offsets)]
        two = other.values[_places(other.offsets[:-1], offsets)]
        # Where they differ, and behind all an end, so that there is always a next such place.
        differing = np.append(np.flatnonzero(one != two), offsets[-1])
        first = differing[np.searchsorted(differing, offsets[:-1])]
        return np.minimum(first - offsets[:-1], shorter)

    def to_arrow(self) -> pa.ListArray:
        """As an Arrow column of lists."""
        return pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), pa.array(self.values))


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _places(starts: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Where the tokens of sequences are that begin at `starts`, as long as `offsets` say."""
    return np.repeat(starts - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1])
