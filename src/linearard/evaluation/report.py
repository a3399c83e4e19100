"""One self-contained HTML page about an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

from linearard.evaluation import plots
from linearard.evaluation.summary import Row, summarise
from linearard.evaluation.svg import is_wide
from linearard.evaluation.table import format_number, format_share, format_value
from linearard.model.causal_lm import ORIGINAL, RESTORED, STRETCHED


def write_report(
    result: Mapping[str, Any], path: str | Path, *, recipe: Mapping[str, Any] | None = None
) -> Path:
    """Write the report of a result; an existing file is replaced.

    The page loads nothing: styles and plots are inside. Sections without data are left out.

    Args:
        result: what `evaluate` returned, or its JSON read back.
        path: the HTML file; its folder is made.
        recipe: shown as it was run, in a collapsed block.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_report(result, recipe=recipe), encoding="utf-8")
    return path


def render_report(result: Mapping[str, Any], *, recipe: Mapping[str, Any] | None = None) -> str:
    """The HTML of `write_report`."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("linearard.evaluation").joinpath("report.html")
    rows, views = summarise(result), result["views"]
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        meta=result["meta"],
        trained=_trained(result.get("stages", {})),
        views=list(views),
        colours={view: plots.colour(view, views) for view in views},
        cards=_cards(rows),
        groups=[
            (group, [_cells(row, list(views)) for row in members])
            for group, members in groupby(rows, key=lambda row: row.group)
        ],
        recovered=any(row.recovered is not None for row in rows),
        sections=_sections(result, rows),
        details={
            "Recipe": _pretty(recipe) if recipe else None,
            "Evaluation settings and environment": _pretty(result["meta"]),
        },
    )


def _sections(result: Mapping[str, Any], rows: list[Row]) -> list[dict[str, Any]]:
    """Title, explanation and SVG of every plot that has data."""
    views = result["views"]
    drawn = [
        (
            "What is left of the original",
            "Scores as a share of the original model's, above chance where chance is known; "
            "lines are paired 95 % intervals.",
            plots.retention_plot(rows, views),
        ),
        (
            "Perplexity by window length",
            "Held-out text, no window crosses two documents; bands are 95 % intervals.",
            plots.perplexity_plot(views),
        ),
        (
            "Loss by position",
            "How the loss falls, or does not, as more context is seen.",
            plots.position_plot(views),
        ),
        (
            "Distance from the original by position",
            "Short inputs read the left end of this: it is what is left of the original on them.",
            plots.agreement_plot(views),
        ),
        (
            "Training",
            "Training loss as it was logged; stages have losses of their own.",
            plots.training_plot(result.get("training", {})),
        ),
        (
            "Pass-key retrieval",
            "Percent of prompts in which the hidden number is given back, every token right.",
            plots.passkey_plot(views),
        ),
        (
            "Retrieval from held-out text",
            "Percent of prompts answered, by what is hidden and asked for; all depths together.",
            plots.retrieval_plot(views),
        ),
        (
            "Relations before and after",
            "KL of the original's relation distributions to the view's, layer by layer.",
            plots.relation_plot(result.get("relations", {})),
        ),
    ]
    # The SVG is made by matplotlib, which escapes names; the template marks it safe.
    return [
        {"title": title, "about": about, "svg": svg, "wide": is_wide(svg)}
        for title, about, svg in drawn
        if svg
    ]


def _trained(stages: Mapping[str, Mapping[str, float]]) -> str:
    """What each stage read and how long it took, as a sentence."""
    parts = [
        f"{name}: {stage['tokens']:,} tokens in {stage['seconds']:,.0f} s"
        for name, stage in stages.items()
    ]
    return "; ".join(parts) + "." if parts else ""


def _cards(rows: list[Row]) -> list[dict[str, str]]:
    """Headline numbers: the view that matters most, beside the views it came from."""
    cards = []
    for row in _headlines(rows):
        view = next((v for v in (RESTORED, STRETCHED) if v in row.values), None)
        view = view or next(iter(row.values), None)
        if view is None:
            continue
        others = [v for v in (ORIGINAL, STRETCHED) if v in row.values and v != view]
        if row.kind == "kl":  # the original's is 0 by definition
            others = [v for v in others if v != ORIGINAL]
        cards.append(
            {
                "label": row.label,
                "view": view,
                "value": format_value(row, view),
                "others": " · ".join(f"{v} {format_value(row, v)}" for v in others),
                "recovered": "" if row.recovered is None else format_share(row.recovered),
            }
        )
    return cards


def _headlines(rows: list[Row]) -> list[Row]:
    """Agreement, the shortest perplexity, the tasks taken together, and the shortest pass key."""
    chosen = [row for row in rows if row.label in ("KL to original (nats)", "top-1 agreement")]
    chosen += [row for row in rows if row.label.startswith("perplexity")][:1]
    chosen += [row for row in rows if row.label == "task average"]
    return chosen + [row for row in rows if row.label.startswith("pass key")][:1]


def _cells(row: Row, views: list[str]) -> dict[str, Any]:
    best = min if row.lower_is_better else max
    compared = {view: value for view, value in row.values.items() if view != ORIGINAL}
    winners = [v for v, value in compared.items() if value == best(compared.values())]
    return {
        "label": row.label,
        "arrow": "↓" if row.lower_is_better else "↑",
        "cells": [
            {
                "value": format_value(row, view),
                "interval": _interval(row, view),
                "best": [view] == winners and len(compared) > 1,
            }
            for view in views
        ],
        "recovered": format_share(row.recovered),
    }


def _interval(row: Row, view: str) -> str:
    interval = row.intervals.get(view)
    return "–".join(format_number(row.kind, end) for end in interval or ())


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
