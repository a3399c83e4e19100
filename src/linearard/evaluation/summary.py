"""The rows of a comparison: one metric each, with what was recovered."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from linearard.evaluation.measures import (
    HELD_OUT,
    MEASURES,
    RETRIEVAL,
    common_keys,
    context_rows,
    parts_of,
    rows_by_length,
)
from linearard.model.view_names import ORIGINAL, RESTORED, STRETCHED

LEAST_GAP = 0.01  # nats of loss or KL, or a share without an interval; less is nothing to recover
LEAST_RETRIEVAL = 0.5  # what the original must find for a share of it to say something


@dataclass(frozen=True)
class Row:
    """One metric over the views.

    Attributes:
        label: what a reader sees.
        group: what the metrics beside it have in common.
        kind: "perplexity", "loss" (nats), "gain" (nats of loss), "kl", "share" (from 0 to 1), "ratio"
            (1 is as good as the original) or "rate" (from 0 to 1, of something unwanted).
        values: view to value; a view without one is absent.
        intervals: view to its 95 % interval, [low, high] or None.
        retained: of a share, view to the part of the original's value that is left; above
            chance where chance is known. Empty for other kinds, for retrieval of which the
            original itself finds less than half, and for tasks that it may only have guessed:
            chance lies within its interval.
        retained_intervals: view to the 95 % interval of that, where there is one.
        recovered: the share of the gap between stretched and original that restored closes;
            for perplexity on the log scale. None where there is no gap to speak of.
    """

    label: str
    group: str
    kind: str
    values: dict[str, float]
    intervals: dict[str, list[float] | None]
    retained: dict[str, float]
    retained_intervals: dict[str, list[float]]
    recovered: float | None

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value is the better one."""
        return self.kind not in ("share", "ratio", "gain")


class Rows(list[Row]):
    """Rows in the making."""

    group = ""

    def add(
        self, label: str, kind: str, parts: Mapping[str, Any], value: str, interval: str = ""
    ) -> None:
        """A row of the `value` in each view's part, and of its interval."""
        values = {view: part[value] for view, part in parts.items() if part[value] is not None}
        intervals = {view: parts[view].get(interval or f"{value}_ci95") for view in values}
        retained = _retained(parts, values, self.group) if kind == "share" else {}
        bounds = {view: parts[view].get("retention_ci95") for view in retained}
        self.append(
            Row(
                label,
                self.group,
                kind,
                values,
                intervals,
                retained,
                {view: ends for view, ends in bounds.items() if ends},
                _recovered(kind, values, intervals),
            )
        )


def summarise(result: Mapping[str, Any]) -> list[Row]:
    """The rows of a result of `evaluate`, in reading order."""
    views: Mapping[str, Mapping[str, Any]] = result["views"]
    rows = Rows()

    rows.group = HELD_OUT
    if agreement := _agreement(views, lambda part: part):
        rows.add("KL to original (nats)", "kl", agreement, "kl")
        rows.add("top-1 agreement", "share", agreement, "top1")
    _add_measures(rows, views, [HELD_OUT])

    rows.group = "other text"
    for text in common_keys(views, "texts"):
        parts = {view: part["texts"][text] for view, part in views.items()}
        if agreement := _agreement(views, lambda part, text=text: part["texts"][text]):
            rows.add(f"{text}: KL to original (nats)", "kl", agreement, "kl")
        rows.add(f"{text}: perplexity", "perplexity", parts, "ppl")
    for text in common_keys(views, "context_texts"):
        context_rows(rows, {v: part["context_texts"][text] for v, part in views.items()}, text)

    rows.group = "tasks"
    for task in common_keys(views, "tasks"):
        parts = {view: part["tasks"][task] for view, part in views.items()}
        metric = next(iter(parts.values()))["metric"]
        rows.add(f"{task} ({metric})", "share", parts, "score", "ci95")
    averages = parts_of(views, "task_average")
    if averages and all(average["tasks"] > 1 for average in averages.values()):
        rows.add("task average", "share", averages, "score", "ci95")
        if all("raw_retention" in average for average in averages.values()):
            rows.add("task average / original's", "ratio", averages, "raw_retention")
    measures = ("same_answers", "answer_kl")
    if averages and all(set(measures) <= average.keys() for average in averages.values()):
        same, kl = ({v: _only(part, name) for v, part in averages.items()} for name in measures)
        rows.add("answers as the original's", "share", same, "same_answers")
        rows.add("KL of answers to original (nats)", "kl", kl, "answer_kl")

    rows.group = "lm-eval"
    for task in common_keys(views, "lm_eval"):
        parts = {view: part["lm_eval"][task] for view, part in views.items()}
        metric = next(iter(parts.values()))["metric"]
        rows.add(f"{task} ({metric}, lm-eval)", "share", parts, "score", "ci95")

    _add_measures(rows, views, [RETRIEVAL])
    rows_by_length(rows, "RULER, six tasks", parts_of(views, "ruler"))
    apart = (HELD_OUT, RETRIEVAL)
    _add_measures(rows, views, [m.group for m in MEASURES if m.group not in apart])
    return list(rows)


def _add_measures(
    rows: Rows, views: Mapping[str, Mapping[str, Any]], groups: Collection[str]
) -> None:
    """Rows of the metrics of some groups that a view gives by itself."""
    for measure in MEASURES:
        if measure.group in groups:
            rows.group = measure.group
            measure.rows(rows, views)


def _agreement(
    views: Mapping[str, Mapping[str, Any]], where: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """The parts of agreement, found by `where` in each view; the original's is by definition."""
    found = {v: where(part)["agreement"] for v, part in views.items() if "agreement" in where(part)}
    if not found or ORIGINAL not in views:
        return found
    return {ORIGINAL: {"kl": 0.0, "top1": 1.0}, **found}


def _only(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A measure and its interval: a share of its own, which is not kept of a score."""
    return {key: part[key] for key in (name, f"{name}_ci95")}


def _retained(parts: Mapping[str, Any], values: dict[str, float], group: str) -> dict[str, float]:
    original = values.get(ORIGINAL)
    if group == RETRIEVAL and (original or 0) < LEAST_RETRIEVAL:
        return {}
    part = parts.get(ORIGINAL, {})
    chance, interval = part.get("chance"), part.get("ci95")
    if chance and interval and interval[0] <= chance:
        return {}
    shares = {
        view: parts[view].get("retention", value / original if original else None)
        for view, value in values.items()
    }
    return {view: share for view, share in shares.items() if share is not None}


def _recovered(
    kind: str, values: dict[str, float], intervals: dict[str, list[float] | None]
) -> float | None:
    if not {ORIGINAL, STRETCHED, RESTORED} <= values.keys():
        return None
    original, stretched, restored = (values[view] for view in (ORIGINAL, STRETCHED, RESTORED))
    if kind in ("perplexity", "loss"):
        if kind == "perplexity":
            original, stretched, restored = map(math.log, (original, stretched, restored))
        if stretched - original < LEAST_GAP:
            return None
    elif kind in ("ratio", "gain"):
        return None
    elif kind == "rate":
        interval = intervals[ORIGINAL]
        if stretched <= (interval[1] if interval else original):
            return None
    elif kind == "share":
        # Without a loss outside the original's own interval there is nothing to recover.
        interval = intervals[ORIGINAL]
        if stretched >= (interval[0] if interval else original - LEAST_GAP):
            return None
    elif stretched - original < LEAST_GAP:
        return None
    return (restored - stretched) / (original - stretched)
