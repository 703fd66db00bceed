"""The replayed allocator follows torch's rules: rounding, pools, splitting, joining."""

from __future__ import annotations

import random

from causal_core.memory.allocator import MIDDLE_SEGMENT, SMALL_SEGMENT, CachingAllocator, replay

MIB = 2**20


def test_segments_by_size():
    allocator = CachingAllocator()
    allocator.allocate(1)
    assert (allocator.allocated, allocator.reserved) == (512, SMALL_SEGMENT)
    allocator.allocate(3 * MIB)
    assert allocator.reserved == SMALL_SEGMENT + MIDDLE_SEGMENT
    allocator.allocate(11 * MIB)  # too large for the rest of the 20 MiB after 3 MiB? it fits: 17
    assert allocator.reserved == SMALL_SEGMENT + MIDDLE_SEGMENT
    allocator.allocate(11 * MIB)
    assert allocator.reserved == SMALL_SEGMENT + MIDDLE_SEGMENT + 12 * MIB


def test_freed_neighbours_join_and_are_used_again():
    allocator = CachingAllocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    reserved = allocator.reserved
    assert reserved == MIDDLE_SEGMENT
    for block in blocks:
        allocator.free(block)
    assert allocator.allocated == 0
    allocator.allocate(20 * MIB)
    assert allocator.reserved == reserved


def test_a_fragmented_pool_cannot_serve_a_large_block():
    allocator = CachingAllocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    allocator.free(blocks[0])
    allocator.free(blocks[2])
    allocator.allocate(10 * MIB)  # 10 MiB are free, but not in one piece
    assert allocator.reserved == MIDDLE_SEGMENT + 10 * MIB


def test_nothing_is_lost_over_many_random_events():
    rng, live, events = random.Random(0), [], []
    for key in range(2000):
        size = rng.choice([100, 5000, 3 * MIB, 15 * MIB])
        events.append((size, key))
        live.append((size, key))
        if len(live) > 20:
            freed = live.pop(rng.randrange(len(live)))
            events.append((-freed[0], freed[1]))
    allocator = replay(events)
    exact = sum(-(-size // 512) * 512 for size, _ in live)
    # A block that is not worth splitting is a little larger than asked for.
    assert exact <= allocator.allocated <= exact + 20 * MIB
    assert allocator.peak_allocated <= allocator.peak_reserved
    for size, key in live:
        events.append((-size, key))
    assert replay(events).allocated == 0
