"""Figures and table of RULER, from the result files of `python -m benchmarks ruler`."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.cells import cell, markdown
from linearard.evaluation.statistics import bootstrap_interval, mean

_VIEWS = ("original", "stretched", "restored")


def ruler_figures(folder: str, result: dict[str, Any]) -> dict[str, float]:
    """Shares as `ruler.MODEL.RUN.VIEW.LENGTH`, with the ends of their 95 % intervals and what is kept.

    Args:
        folder: where the file lies; not part of a key.
        result: a result file.
    """
    figures: dict[str, float] = {}
    model = re.sub(r"[^a-z0-9]+", "_", result["model"].lower().removesuffix(".gguf"))
    originals = {
        length: mean(_values(part))
        for views in result["runs"].values()
        for length, part in views.get("original", {}).items()
    }
    for run, views in result["runs"].items():
        for view, lengths in views.items():
            key = f"ruler.{model}.{run}.{view}"
            for length, part in lengths.items():
                values = _values(part)
                figures[f"{key}.{length}"] = share = mean(values)
                figures[f"{key}.{length}.prompts"] = len(values)
                if originals.get(length):
                    figures[f"{key}.{length}.kept"] = share / originals[length]
                for end, bound in zip(
                    ("low", "high"), bootstrap_interval(values, 0) or (), strict=False
                ):
                    figures[f"{key}.{length}.{end}"] = bound
    return figures


def _values(part: dict[str, Any]) -> list[float]:
    return [value for task in part["tasks"].values() for value in task["values"]]


def ruler_table(figures: dict[str, float]) -> str:
    """A row for every view of the first run of a model, and for every other run's restored view."""
    found = [m for m in map(re.compile(r"ruler\.(.+)\.(\d+)").fullmatch, figures) if m]
    if not found:
        return "Not measured yet."
    lengths = sorted({int(match[2]) for match in found})[:6]
    rows = []
    for key in dict.fromkeys(match[1] for match in found):
        model, run, view = key.split(".")
        name = view if view != "restored" else run.replace("_", " ")
        order = (model, _VIEWS.index(view), run)
        cells = [cell(figures.get(f"ruler.{key}.{length}"), ".2f") for length in lengths]
        rows.append((order, [f"{model.replace('_', ' ')}: {name}", *cells]))
    headers = ["RULER, mean of six tasks", *(f"{length:,}" for length in lengths)]
    return markdown(headers, [row for _, row in sorted(rows)])
