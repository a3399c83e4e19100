"""The order in which blocks start: every one once, and done sooner where it is changed."""

import heapq

import pytest

from linearard.ops.relation_kl.hopper.schedule import mixed


def order(blocks, first, end):
    """Blocks of a head as they start: with most tiles first, those of [first, end) in two halves in turns."""
    most_first = list(range(blocks, 0, -1))
    some = most_first[first:end]
    half = (len(some) + 1) // 2
    taken = [some[half * (i % 2) + i // 2] for i in range(len(some))]
    return most_first[:first] + taken + most_first[end:]


def duration(heads, blocks, ranks, multiprocessors, tiles=3):
    free = [(0, i) for i in range(multiprocessors)]
    for block in order(blocks, *ranks):
        for _ in range(heads):
            at, i = heapq.heappop(free)
            heapq.heappush(free, (at + 2 + tiles * block, i))
    return max(at for at, _ in free)


@pytest.mark.parametrize("multiprocessors", [132, 114, 7])
def test_never_later(multiprocessors):
    changed = 0
    for heads in (1, 2, 3, 8, 9, 15, 16, 27, 32, 48):
        for blocks in (1, 2, 5, 11, 22, 43, 86):
            ranks = mixed(heads, blocks, 3, multiprocessors)
            assert 0 <= ranks[0] <= ranks[1] <= blocks
            assert sorted(order(blocks, *ranks)) == list(range(1, blocks + 1))
            before = duration(heads, blocks, (0, 0), multiprocessors)
            assert duration(heads, blocks, ranks, multiprocessors) <= before
            changed += ranks != (0, 0)
    assert changed


def test_three_blocks_each_are_evened_out():
    """9 heads of 43 blocks on 132 multiprocessors: from 10 % above an even share to 1 %."""
    heads, blocks = 9, 43
    even = heads * sum(2 + 3 * n for n in range(1, blocks + 1)) / 132
    assert duration(heads, blocks, (0, 0), 132) > 1.09 * even
    assert duration(heads, blocks, mixed(heads, blocks, 3, 132), 132) < 1.01 * even
