"""Means over buckets of positions in a window, each twice as far as the one before."""

from __future__ import annotations

from torch import Tensor

FIRST_BUCKET = 128  # positions; each further bucket ends at twice the position


def mean_by_position(name: str, values: Tensor, first: int) -> list[dict[str, float]]:
    """Means of a measure over buckets of positions.

    Args:
        name: of the measure.
        values: float64 [positions], its means at positions `first`, `first + 1`, ...
        first: the first position that has one, less than 128.

    Returns:
        `{"start", "end", name}` of each bucket: the mean at positions start <= position < end.
    """
    buckets, start, end, last = [], first, FIRST_BUCKET, first + len(values)
    while start < last:
        stop = min(end, last)
        buckets.append(
            {"start": start, "end": stop, name: values[start - first : stop - first].mean().item()}
        )
        start, end = stop, 2 * end
    return buckets
