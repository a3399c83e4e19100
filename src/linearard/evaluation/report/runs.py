"""Any number of evaluations on one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linearard.evaluation.report import curves, heat, plots
from linearard.evaluation.report.bars import Bar, bar
from linearard.evaluation.report.page import render
from linearard.evaluation.report.wording import stretch_of, trained
from linearard.evaluation.summary import Row, summarise
from linearard.evaluation.table import format_value
from linearard.model.view_names import ORIGINAL, RESTORED

_COLOURS = (plots.COLOURS[RESTORED], *plots.OTHER_COLOURS)


@dataclass(frozen=True)
class _Side:
    """One line of every comparison: a run's view that counts, or the original of some runs."""

    name: str
    colour: str
    part: Mapping[str, Any]
    rows: dict[str, tuple[Row, str]]  # by label: a row, and the view of it


def write_runs(runs: Mapping[str, Mapping[str, Any]], path: str | Path) -> Path:
    """Write the comparison of runs; an existing file is replaced.

    Args:
        runs: what `evaluate` returned, or its JSON read back, by the name of the run.
        path: the HTML file; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_runs(runs), encoding="utf-8")
    return path


def render_runs(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """The HTML of `write_runs`. Of each run the restored view counts, or else its last one."""
    sides = _sides(runs)
    parts = {side.name: side.part for side in sides}
    colours = {side.name: side.colour for side in sides}
    return render(
        "runs.html",
        title=f"{len(runs)} runs",
        runs=[
            {
                "name": name,
                "colour": colours.get(name, plots.COLOURS[ORIGINAL]),
                "model": result["meta"]["model"],
                "stretch": stretch_of(result.get("stretch", {})),
                "trained": trained(result.get("stages", {})),
                "about": f"{result['meta']['date'][:10]} · {result['meta']['device']}, "
                f"{result['meta']['dtype']}",
            }
            for name, result in runs.items()
        ],
        colours=colours,
        metrics=_metrics(sides),
        curves=_curves(parts, colours),
        heats=[
            {
                "title": title,
                "about": "Percent of prompts answered: where the needle stands, by the prompt's tokens.",
                "maps": heat.by_depth(parts, section),
                "label": 40,
            }
            for title, section in (
                ("Pass key", "passkey"),
                ("Retrieval from held-out text", "retrieval"),
            )
        ],
        details={},
    )


def _sides(runs: Mapping[str, Mapping[str, Any]]) -> list[_Side]:
    """Originals, each once, and behind them the runs."""
    originals: list[_Side] = []
    restored: list[_Side] = []
    models = {result["meta"]["model"] for result in runs.values()}
    for index, (name, result) in enumerate(runs.items()):
        views = result["views"]
        found = {row.label: row for row in summarise(result)}
        counts = RESTORED if RESTORED in views else list(views)[-1]
        if ORIGINAL in views and not any(o.part == views[ORIGINAL] for o in originals):
            of = "" if len(models) == 1 else f" {result['meta']['model']}"
            again = sum(o.name.startswith(f"{ORIGINAL}{of}") for o in originals)
            label = f"{ORIGINAL}{of}" + (f" ({again + 1})" if again else "")
            originals.append(_side(label, plots.COLOURS[ORIGINAL], views, ORIGINAL, found))
        if counts != ORIGINAL:
            restored.append(_side(name, _COLOURS[index % len(_COLOURS)], views, counts, found))
    return originals + restored


def _side(
    name: str, colour: str, views: Mapping[str, Any], view: str, found: Mapping[str, Row]
) -> _Side:
    rows = {label: (row, view) for label, row in found.items() if view in row.values}
    return _Side(name, colour, views[view], rows)


def _metrics(sides: list[_Side]) -> list[tuple[str, list[dict[str, Any]]]]:
    """By group of metrics: label, arrow, and a bar a side."""
    groups: dict[str, dict[str, Row]] = {}
    for side in sides:
        for label, (row, _) in side.rows.items():
            groups.setdefault(row.group, {}).setdefault(label, row)
    return [
        (
            group,
            [
                {
                    "label": label,
                    "arrow": "↓" if row.lower_is_better else "↑",
                    "lines": _bars(label, sides),
                }
                for label, row in metrics.items()
            ],
        )
        for group, metrics in groups.items()
    ]


def _bars(label: str, sides: list[_Side]) -> list[Bar]:
    having = [(side, *side.rows[label]) for side in sides if label in side.rows]
    originals = [row.values[view] for _, row, view in having if view == ORIGINAL]
    # Where the original's loss beyond its window dwarfs the others, its bar is cut off.
    shown = [row.values[view] for _, row, view in having if view != ORIGINAL] or originals
    top = 1.0 if having[0][1].kind in ("share", "rate") else 1.25 * max(shown)
    marks = originals if len(originals) == 1 and 0 < originals[0] <= top else []
    return [
        bar(
            side.name,
            format_value(row, view),
            side.colour,
            row.values[view],
            row.intervals.get(view),
            top,
            marks,
        )
        for side, row, view in having
    ]


def _curves(
    parts: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str]
) -> list[dict[str, Any]]:
    agreements = (part.get("agreement", {}).get("by_position", []) for part in parts.values())
    read = max((bucket["end"] for buckets in agreements for bucket in buckets), default=0)
    wanted = (
        ("Loss by growing context", curves.context, "context", "tokens read", "loss (nats)", {}),
        (
            "Perplexity by window",
            curves.perplexity,
            "perplexity",
            "window (tokens)",
            "perplexity",
            {},
        ),
        (
            "Distance from the original by position",
            curves.agreement,
            "agreement",
            "position (tokens)",
            "KL to original (nats)",
            {"ticks": plots.position_ticks(read), "least": 3},
        ),
    )
    return [
        {
            "title": title,
            "about": "",
            "panels": plots.token_plot(
                {name: of(part) for name, part in parts.items()}, colours, name, x, y, **options
            ),
        }
        for title, of, name, x, y, options in wanted
    ]
