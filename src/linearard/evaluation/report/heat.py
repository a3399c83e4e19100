"""Heat maps: shares found by length and depth as coloured tables, and what goes on inside as shaded cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from linearard.evaluation.report.plots import (
    RELATION_TITLES,
    in_order,
    relation_names,
    shortened,
    tokens,
)
from linearard.evaluation.report.svg import shaded_cells

Views = Mapping[str, Mapping[str, Any]]

_FAINTEST = 1e-3  # attention without a shade
_DECADES = 3  # of KL that heads are shaded over


@dataclass(frozen=True)
class HeatMap:
    """Shares as a table.

    Attributes:
        view: whose they are.
        columns: labels across.
        rows: label and, under each column, (text, colour) or None.
    """

    view: str
    columns: list[str]
    rows: list[tuple[str, list[tuple[str, str] | None]]]


@dataclass(frozen=True)
class Shaded:
    """Grids of shaded cells that share a scale.

    Attributes:
        title: of them all.
        parts: name and `<svg>` of each.
        low, high: what the scale begins and ends with, in words.
    """

    title: str
    parts: list[tuple[str, str]]
    low: str
    high: str


def by_depth(views: Views, section: str) -> list[HeatMap]:
    """Shares of prompts answered, by depth down and length across."""
    shares = {
        view: {(cell["depth"], cell["length"]): cell["accuracy"] for cell in part[section]["cells"]}
        for view, part in views.items()
        if part.get(section, {}).get("cells")
    }
    depths = sorted({depth for grid in shares.values() for depth, _ in grid})
    return _heat_maps(shares, {depth: f"{depth:.0%}" for depth in depths})


def by_task(views: Views) -> list[HeatMap]:
    """Shares of retrieval prompts answered, by what is asked for down and length across."""
    shares = {
        view: {
            (task, int(length)): at["accuracy"]
            for task, measured in part["retrieval"]["tasks"].items()
            for length, at in measured["by_length"].items()
        }
        for view, part in views.items()
        if "retrieval" in part
    }
    tasks = dict.fromkeys(task for grid in shares.values() for task, _ in grid)
    return _heat_maps(shares, {task: shortened(task) for task in tasks})


def _heat_maps(
    shares: Mapping[str, Mapping[tuple[Any, int], float]], rows: Mapping[Any, str]
) -> list[HeatMap]:
    lengths = sorted({length for grid in shares.values() for _, length in grid})
    return [
        HeatMap(
            view,
            [tokens(n) for n in lengths],
            [(label, [_cell(grid.get((row, n))) for n in lengths]) for row, label in rows.items()],
        )
        for view, grid in shares.items()
    ]


def _cell(share: float | None) -> tuple[str, str] | None:
    """A share as text, and a colour mixed from the page's three."""
    if share is None:
        return None
    below, above, part = (
        ("none", "half", 2 * share) if share < 0.5 else ("half", "all", 2 * share - 1)
    )
    mixed = f"color-mix(in oklab, var(--{above}) {100 * part:.0f}%, var(--{below}))"
    return f"{100 * share:.0f}", mixed


def head_maps(heads: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> list[Shaded]:
    """Relation KL of every head, layers across and heads down: a grid a view for each relation."""
    maps = []
    for name in relation_names(heads):
        grids = {view: layers[name] for view, layers in heads.items() if name in layers}
        every = [kl for layers in grids.values() for layer in layers for kl in layer]
        high = max(every, default=0.0)
        if high <= 0:
            continue
        low = high / 10**_DECADES
        parts = [
            (view, shaded_cells(list(zip_longest(*layers, fillvalue=0.0)), low, high, square=False))
            for view, layers in grids.items()
        ]
        title = RELATION_TITLES.get(name, name)
        maps.append(Shaded(title, parts, f"≤ {low:.1g}", f"{high:.2g} nats"))
    return maps


def attention_map(attention: Mapping[str, Any]) -> Shaded | None:
    """Where one head looks, a grid a view: queries down, keys across."""
    if not attention:
        return None
    parts = [
        (view, shaded_cells(rows, _FAINTEST, 1.0, square=True))
        for view, rows in in_order(attention["views"]).items()
    ]
    title = f"layer {attention['layer']}, head {attention['head']}, {attention['tokens']:,} tokens"
    return Shaded(title, parts, f"≤ {_FAINTEST:g}", "1")
