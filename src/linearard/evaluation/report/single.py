"""One self-contained HTML page about an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from linearard.evaluation.report import curves, heat, plots
from linearard.evaluation.report.bars import kept_bars
from linearard.evaluation.report.page import render
from linearard.evaluation.report.wording import stretch_of, trained
from linearard.evaluation.summary import Row, summarise
from linearard.evaluation.table import format_number, format_recovered, format_value
from linearard.model.view_names import ORIGINAL, RESTORED, STRETCHED

_MUCH = 0.5  # of what was lost; from here on it is shown as a success


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
    rows, views = summarise(result), plots.in_order(result["views"])
    return render(
        "report.html",
        meta=result["meta"],
        stretch=stretch_of(result.get("stretch", {})),
        trained=trained(result.get("stages", {})),
        views=list(views),
        colours={view: plots.colour(view, views) for view in views} | _colours_inside(result),
        cards=_cards(rows),
        heats=_heats(views),
        curves=_curves(views),
        groups=[
            (group, [_cells(row, list(views)) for row in members])
            for group, members in groupby(rows, key=lambda row: row.group)
        ],
        recovered=any(row.recovered is not None for row in rows),
        kept=kept_bars(rows, views),
        inside=_inside(result.get("relations", {})),
        heads=heat.head_maps(result.get("relation_heads", {})),
        attention=heat.attention_map(result.get("attention", {})),
        training=_training(result.get("training", {})),
        details={
            "Recipe": _pretty(recipe) if recipe else None,
            "Evaluation settings and environment": _pretty(result["meta"]),
        },
    )


def _colours_inside(result: Mapping[str, Any]) -> dict[str, str]:
    named = [*result.get("relation_heads", {}), *result.get("attention", {}).get("views", {})]
    return {view: plots.colour(view, result["views"]) for view in named if view in plots.COLOURS}


def _heats(views: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "title": "Pass key",
            "about": "Percent of prompts in which the hidden number is given back, every token right: "
            "where it stands in the prompt, by the prompt's tokens.",
            "maps": heat.by_depth(views, "passkey"),
            "label": 40,
        },
        {
            "title": "Retrieval from held-out text",
            "about": "Percent of prompts answered, all kinds of questions together: where the needle "
            "stands, by the prompt's tokens.",
            "maps": heat.by_depth(views, "retrieval"),
            "label": 40,
        },
        {
            "title": "Retrieval by kind of question",
            "about": "The same prompts by what is hidden and asked for, all depths together.",
            "maps": heat.by_task(views),
            "label": 66,
        },
    ]


def _curves(views: Mapping[str, Any]) -> list[dict[str, Any]]:
    windows = [int(window) for part in views.values() for window in part.get("perplexity", {})]
    longest = max(windows, default=0)
    found = (part.get("agreement", {}).get("by_position", []) for part in views.values())
    read = max((bucket["end"] for buckets in found for bucket in buckets), default=0)
    context = _plot(views, curves.context, "context", "tokens read", "loss (nats)")
    size = _plot(views, curves.perplexity, "perplexity", "window (tokens)", "perplexity")
    position = _plot(
        views,
        lambda part: curves.position(part, longest),
        "position",
        f"position in a window of {longest:,} tokens",
        "loss (nats)",
        ticks=plots.position_ticks(longest),
        least=3,
    )
    agreement = _plot(
        views,
        curves.agreement,
        "agreement",
        f"position in a window of {read:,} tokens",
        "KL to original (nats)",
        ticks=plots.position_ticks(read),
        least=3,
    )
    return [
        {
            "title": "Loss by growing context",
            "about": "The same tokens of held-out text, read with more and more before them. Falling "
            "lines use what is far; the original ends at its own window. Bands are 95 % intervals.",
            "panels": context,
        },
        {
            "title": "Perplexity by window length",
            "about": "Held-out text, no window crosses two documents; windows of other lengths are other "
            "text. Bands are 95 % intervals.",
            "panels": size,
        },
        {
            "title": "Loss by position",
            "about": "How the loss falls, or does not, as more context is seen.",
            "panels": position,
        },
        {
            "title": "Distance from the original by position",
            "about": "Short inputs read the left end of this: it is what is left of the original on them.",
            "panels": agreement,
        },
    ]


def _plot(
    views: Mapping[str, Any], read: Any, name: str, x_label: str, y_label: str, **options: Any
) -> list[plots.Panel]:
    colours = {view: plots.colour(view, views) for view in views}
    found = {view: read(part) for view, part in views.items()}
    return plots.token_plot(found, colours, name, x_label, y_label, **options)


def _inside(relations: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "title": "Relations before and after",
            "about": "KL of the original's relation distributions to the view's, layer by layer.",
            "panels": plots.relation_plots(relations),
        }
    ]


def _training(training: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": "Training",
        "about": "Training loss as it was logged; stages have losses of their own.",
        "panels": plots.training_plots(training),
    }


def _cards(rows: list[Row]) -> list[dict[str, Any]]:
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
                "others": [(other, format_value(row, other)) for other in others],
                "recovered": _recovered(row.recovered),
            }
        )
    return cards


def _headlines(rows: list[Row]) -> list[Row]:
    """Agreement, perplexity of the shortest and longest windows, tasks, what context gives, the pass key."""
    chosen = [row for row in rows if row.label in ("KL to original (nats)", "top-1 agreement")]
    windows = [row for row in rows if row.kind == "perplexity" and row.group == "held-out text"]
    chosen += list({id(row): row for row in [*windows[:1], *windows[-1:]]}.values())
    chosen += [row for row in rows if row.label == "task average" or row.kind == "gain"]
    keys = [row for row in rows if row.label.startswith("pass key")]
    return chosen + keys[-1:]


def _recovered(share: float | None) -> dict[str, str]:
    """How much of what was lost came back, in words and in the tone of success, of failure, or of neither."""
    if share is None:
        return {"text": "", "short": format_recovered(None), "tone": ""}
    short = format_recovered(share)
    if share < 0:
        return {"text": "worse than stretched", "short": short, "tone": "bad"}
    if round(share, 3) == 0:
        return {"text": "nothing of the loss recovered", "short": short, "tone": "bad"}
    tone = "good" if share >= _MUCH else ""
    part = "all" if share >= 1 else short
    return {"text": f"{part} of the loss recovered", "short": short, "tone": tone}


def _cells(row: Row, views: list[str]) -> dict[str, Any]:
    best = min if row.lower_is_better else max
    compared = {view: value for view, value in row.values.items() if view != ORIGINAL}
    winners = [v for v, value in compared.items() if value == best(compared.values())]
    return {
        "label": row.label,
        "arrow": "↓" if row.lower_is_better else "↑",
        "cells": [
            {
                "view": view,
                "value": format_value(row, view),
                "interval": _interval(row, view),
                "best": [view] == winners and len(compared) > 1,
            }
            for view in views
        ],
        "recovered": _recovered(row.recovered),
    }


def _interval(row: Row, view: str) -> str:
    interval = row.intervals.get(view)
    return " – ".join(format_number(row.kind, end) for end in interval or ())


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
