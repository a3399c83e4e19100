"""What a view of an evaluation draws as lines: points, with an interval where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Part = Mapping[str, Any]


@dataclass(frozen=True)
class Curve:
    """Points of one line.

    Attributes:
        x, y: the same number of each.
        band: lower and upper ends of y, if there are intervals.
    """

    x: Sequence[float] = ()
    y: Sequence[float] = ()
    band: tuple[Sequence[float], Sequence[float]] | None = None


def perplexity(part: Part) -> Curve:
    """Perplexity over window length."""
    points = [
        (int(window), measured["ppl"], measured["ppl_ci95"])
        for window, measured in part.get("perplexity", {}).items()
        if measured["ppl"] is not None
    ]
    return _with_intervals(points)


def context(part: Part) -> Curve:
    """Loss of the same tokens over how much is read."""
    found = part.get("context", {}).get("by_length", {})
    return _with_intervals(
        [(int(n), at["nll"], at["nll_ci95"]) for n, at in found.items() if at["nll"] is not None]
    )


def position(part: Part, window: int) -> Curve:
    """Loss over the position in windows of one length."""
    found = part.get("perplexity", {}).get(str(window), {}).get("by_position", [])
    return _buckets(found, "nll")


def agreement(part: Part) -> Curve:
    """KL to the original over the position in a window."""
    return _buckets(part.get("agreement", {}).get("by_position", []), "kl")


def _with_intervals(points: list[tuple[int, float, list[float] | None]]) -> Curve:
    points.sort()
    x, y = [p[0] for p in points], [p[1] for p in points]
    low, high = ([p[2][end] if p[2] else p[1] for p in points] for end in (0, 1))
    return Curve(x, y, (low, high))


def _buckets(found: Sequence[Mapping[str, float]], name: str) -> Curve:
    kept = [bucket for bucket in found if bucket[name] is not None]
    return Curve([(b["start"] + b["end"]) / 2 for b in kept], [b[name] for b in kept])
