"""The comparison as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from linearard.evaluation.summary import Row, summarise

MISSING = "–"


def comparison_table(result: Mapping[str, Any]) -> str:
    """Metrics down, views across, and the share of the lost quality that was recovered.

    Args:
        result: what `evaluate` returned, or its JSON read back.
    """
    views = list(result["views"])
    rows = summarise(result)
    recovered = any(row.recovered is not None for row in rows)
    body = [
        [row.label, *(format_value(row, view) for view in views)]
        + ([format_recovered(row.recovered)] if recovered else [])
        for row in rows
    ]
    headers = ["", *views, *(["recovered"] if recovered else [])]
    align = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(body, headers, disable_numparse=True, colalign=align if body else None)


def format_value(row: Row, view: str) -> str:
    """A value with the digits its kind deserves."""
    return MISSING if view not in row.values else format_number(row.kind, row.values[view])


def format_number(kind: str, value: float) -> str:
    """A number with about four digits, a share or ratio with three decimals."""
    if kind in ("share", "ratio", "rate"):
        return f"{value:.3f}"
    if kind == "gain":
        return f"{value:+.3f}"
    decimals = 4 if value < 1 else 3 if value < 10 else 2 if value < 100 else 1
    return f"{value:,.{decimals if value < 1000 else 0}f}"


def format_recovered(share: float | None) -> str:
    """The part of a loss that came back, as a percentage; a word where more was lost instead."""
    if share is None:
        return MISSING
    return "worse" if share < 0 else f"{100 * share:.1f} %"
