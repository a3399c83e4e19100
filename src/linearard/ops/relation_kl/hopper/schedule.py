"""In which order the blocks of a launch start."""

from __future__ import annotations

from functools import lru_cache
from heapq import heapreplace

_START = 2  # what a block costs before its first tile, in tiles
_FEW = 6  # blocks a multiprocessor, above which the order gains little


@lru_cache(maxsize=1024)
def mixed(heads: int, blocks: int, tiles: int, multiprocessors: int) -> tuple[int, int]:
    """Ranks (first, end) between which the blocks of a causal launch are mixed; (0, 0) if none.

    Blocks start with most tiles first, rank by rank, a rank being one block of each of ``heads``.
    After the second of three blocks a multiprocessor all are then done at the same time, and the
    third, long here and short there, leaves them uneven. With the second ones mixed they are done at
    different times, and the third ones even them out. So it is done where a count of the launch says
    that it pays.

    Args:
        blocks: of a head; the last of them has ``blocks * tiles`` tiles, each before it ``tiles`` less.
        multiprocessors: each works on one block at a time.
    """
    if not 2 * multiprocessors < heads * blocks < _FEW * multiprocessors:
        return 0, 0
    second = multiprocessors // heads, min(2 * multiprocessors // heads, blocks)

    def duration(ranks: tuple[int, int]) -> int:
        done = [0] * multiprocessors
        for rank in range(blocks):
            cost = _START + tiles * (blocks - _placed(rank, *ranks))
            for _ in range(heads):
                heapreplace(done, done[0] + cost)
        return max(done)

    return min((0, 0), second, key=duration)


def _placed(rank: int, first: int, end: int) -> int:
    """``Place`` of tiles.h."""
    within = rank - first
    if not 0 <= within < end - first:
        return rank
    return first + within // 2 + (-(-(end - first) // 2) if within % 2 else 0)
