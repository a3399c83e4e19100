"""How sequences are put together for a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Track = Callable[[Sequence[Any]], Iterable[Any]]  # shows progress over a sequence

TOKENS_PER_FORWARD = 2**14


def batches(count: int, length: int, batch_size: int) -> list[slice]:
    """Slices that cut `count` sequences of `length` tokens into batches for one forward each."""
    size = max(1, min(batch_size, TOKENS_PER_FORWARD // length))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
