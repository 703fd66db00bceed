"""A replay of allocations through the rules of torch's CUDA caching allocator: *reserved* memory.

Rules as in torch's c10/cuda/CUDACachingAllocator: sizes round up to 512 bytes; up to 1 MiB comes
out of 2 MiB segments, up to 10 MiB out of 20 MiB segments, larger ones get a segment of their own
in multiples of 2 MiB; the smallest free block that is large enough is taken and split; a freed
block joins its free neighbours; segments are not given back while memory lasts.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

ROUND = 512
SMALL = 2**20
SMALL_SEGMENT = 2 * 2**20
MIDDLE = 10 * 2**20
MIDDLE_SEGMENT = 20 * 2**20
LARGE_ROUND = 2 * 2**20


class _Block:
    __slots__ = ("address", "following", "free", "large", "previous", "size")

    def __init__(self, address: int, size: int, large: bool) -> None:
        self.address, self.size, self.large = address, size, large
        self.previous: _Block | None = None
        self.following: _Block | None = None
        self.free = False


class CachingAllocator:
    """One device's allocator; `allocated` and `reserved` are bytes, `peak_*` their highest."""

    def __init__(self) -> None:
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self._free: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        self._at: dict[int, _Block] = {}  # free blocks by address
        self._end = 0

    def allocate(self, size: int) -> _Block:
        """A block of at least `size` bytes."""
        size = max(ROUND, -(-size // ROUND) * ROUND)
        large = size > SMALL
        block = self._best(size, large) or self._segment(size, large)
        rest = block.size - size
        if rest > SMALL if large else rest >= ROUND:
            self._split(block, size)
        block.free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def free(self, block: _Block) -> None:
        """Gives a block back to the pool."""
        self.allocated -= block.size
        block.free = True
        for other in (block.previous, block.following):
            if other is not None and other.free:
                self._take(other)
                block = self._join(*sorted((block, other), key=lambda b: b.address))
        self._put(block)

    def _best(self, size: int, large: bool) -> _Block | None:
        pool = self._free[large]
        position = bisect.bisect_left(pool, (size, -1))
        if position == len(pool):
            return None
        block = self._at[pool[position][1]]
        self._take(block)
        return block

    def _segment(self, size: int, large: bool) -> _Block:
        if not large:
            length = SMALL_SEGMENT
        elif size < MIDDLE:
            length = MIDDLE_SEGMENT
        else:
            length = -(-size // LARGE_ROUND) * LARGE_ROUND
        self.reserved += length
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        block = _Block(self._end, length, large)
        self._end += length
        return block

    def _split(self, block: _Block, size: int) -> None:
        rest = _Block(block.address + size, block.size - size, block.large)
        rest.previous, rest.following, rest.free = block, block.following, True
        if block.following is not None:
            block.following.previous = rest
        block.following, block.size = rest, size
        self._put(rest)

    def _join(self, first: _Block, second: _Block) -> _Block:
        first.size += second.size
        first.following = second.following
        if second.following is not None:
            second.following.previous = first
        first.free = True
        return first

    def _put(self, block: _Block) -> None:
        bisect.insort(self._free[block.large], (block.size, block.address))
        self._at[block.address] = block

    def _take(self, block: _Block) -> None:
        pool = self._free[block.large]
        del pool[bisect.bisect_left(pool, (block.size, block.address))]
        del self._at[block.address]


def replay(events: Iterable[tuple[int, int]]) -> CachingAllocator:
    """Runs (+bytes, key) and (-bytes, key) events through a fresh allocator."""
    allocator = CachingAllocator()
    blocks: dict[int, _Block] = {}
    for size, key in events:
        if size > 0:
            blocks[key] = allocator.allocate(size)
        elif key in blocks:
            allocator.free(blocks.pop(key))
    return allocator
