"""Bars with intervals, as the pages draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from linearard.evaluation.report import plots
from linearard.evaluation.summary import Row
from linearard.model.view_names import ORIGINAL

MOST_KEPT = 1.6  # of the original that is shown: a score near chance has intervals without end


@dataclass(frozen=True)
class Bar:
    """One bar; all lengths are percentages of the track's.

    Attributes:
        name, text, colour: what it is of, its value in words, and its colour.
        width: of the bar.
        ends: start and width of the interval, if there is one.
        marks: upright lines.
    """

    name: str
    text: str
    colour: str
    width: float
    ends: tuple[float, float] | None = None
    marks: list[float] = field(default_factory=list)


def bar(
    name: str,
    text: str,
    colour: str,
    value: float,
    interval: Sequence[float] | None,
    top: float,
    marks: Sequence[float] = (),
) -> Bar:
    """A bar from 0 to a value, of a track that ends at `top`; what lies outside is cut off."""

    def place(number: float) -> float:
        return round(100 * min(max(number / top, 0.0), 1.0), 2) if top > 0 else 0.0

    ends = None
    if interval:
        low, high = map(place, interval)
        ends = (low, round(high - low, 2))
    return Bar(name, text, colour, place(value), ends, [place(mark) for mark in marks])


def kept_bars(rows: Sequence[Row], views: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is left of the original on every metric that is a share, a bar a view."""
    shown = [view for view in views if view != ORIGINAL]
    kept = [row for row in rows if any(view in row.retained for view in shown)]
    ends = [end for row in kept for pair in row.retained_intervals.values() for end in pair]
    values = [value for row in kept for value in row.retained.values()]
    top = min(max([1.0, *values, *ends]), MOST_KEPT)
    return [
        {
            "label": row.label,
            "lines": [
                bar(
                    view,
                    f"{100 * row.retained[view]:.0f} %",
                    plots.colour(view, views),
                    row.retained[view],
                    row.retained_intervals.get(view),
                    top,
                    [1.0],
                )
                for view in shown
                if view in row.retained
            ],
        }
        for row in kept
    ]
