"""Which weights are in memory at a time: some rows of some heads, as bounded memory allows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

_BLOCKS = (
    528  # blocks of rows that a launch should have at least: four for each place of a large GPU
)


class Panel(NamedTuple):
    """Weights [heads, rows, width] of rows ``low`` ... of heads ``first_head`` ..., columns ``base`` ...

    All but the heads are multiples of a block of tokens.
    """

    first_head: int
    heads: int
    low: int
    rows: int
    base: int
    width: int

    def in_blocks(self, block: int) -> tuple[int, int, int, int]:
        """``low``, ``base``, ``rows`` and ``width`` as the kernels take them."""
        return self.low // block, self.base // block, self.rows // block, self.width // block


@lru_cache(maxsize=256)
def panels(
    heads: int,
    share: int,
    tokens: int,
    block: int,
    triangle: bool,
    window: int | None,
    room: int,
) -> tuple[Panel, ...]:
    """All panels of a call, in the order in which they are worked on.

    Args:
        heads: heads of the queries, of all batches and relations.
        share: heads that a key's has; they stay together.
        tokens: rows, and columns.
        block: of tokens.
        triangle: rows see nothing behind their own block.
        window: how far back, and without ``triangle`` ahead, a row sees.
        room: weights that fit at a time; one block of rows of ``share`` heads is the least.
    """
    full = -(-tokens // block) * block
    if not triangle:
        window = None  # columns of both sides: not worth a base of their own
    few = -(-_BLOCKS // (full // block * share)) * share
    edges, largest = _rows(full, block, triangle, window, room // few, room // share)
    together = min(heads, max(share, room // largest // share * share))
    sets = -(-heads // together)
    together = -(-heads // (sets * share)) * share  # sets of about one size
    return tuple(
        Panel(first, min(together, heads - first), *edge)
        for first in range(0, heads, together)
        for edge in edges
    )


def _rows(
    full: int, block: int, triangle: bool, window: int | None, wanted: int, room: int
) -> tuple[list[tuple[int, int, int, int]], int]:
    """Edges, and weights of the largest panel of a head: ``wanted``, or ``room``, or a block of rows.

    They do not depend on the number of heads, and with them nor does the order of a head's sums.
    """
    for most in (wanted, room):
        count = 1
        while True:
            edges = list(_edges(full, block, count, triangle, window))
            largest = max(rows * width for _, rows, _, width in edges)
            if largest <= most:
                return edges, largest
            if all(rows == block for _, rows, _, _ in edges):
                break
            count += max(1, count // 4)
    return edges, largest


def _edges(
    full: int, block: int, count: int, triangle: bool, window: int | None
) -> Iterator[tuple[int, int, int, int]]:
    """low, rows, base and width of up to ``count`` panels of about one size."""
    blocks = full // block
    even = triangle and window is None  # rows see more the later they stand
    low = 0
    for i in range(1, count + 1):
        share = i / count
        high = min(full, round(blocks * (share**0.5 if even else share)) * block)
        if high <= low:
            continue
        base = 0 if window is None else max(0, low - window + 1) // block * block
        yield low, high - low, base, (high if triangle else full) - base
        low = high
