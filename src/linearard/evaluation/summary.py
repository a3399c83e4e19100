"""The rows of a comparison: one metric each, with what was recovered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from linearard.model.causal_lm import ORIGINAL, RESTORED, STRETCHED

LEAST_PERPLEXITY_GAP = 0.01  # nats; below it a share of the gap says nothing


@dataclass(frozen=True)
class Row:
    """One metric over the views.

    Attributes:
        label: what a reader sees.
        kind: "perplexity", "kl" or "share" (a number from 0 to 1).
        values: view to value; a view without one is absent.
        intervals: view to its 95 % interval, [low, high] or None.
        retained: of a share, view to the part of the original's value that is left; above
            chance where chance is known. Empty for other kinds.
        recovered: the share of the gap between stretched and original that restored closes;
            for perplexity on the log scale. None where there is no gap to speak of.
    """

    label: str
    kind: str
    values: dict[str, float]
    intervals: dict[str, list[float] | None]
    retained: dict[str, float]
    recovered: float | None

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value is the better one."""
        return self.kind != "share"


def summarise(result: Mapping[str, Any]) -> list[Row]:
    """The rows of a result of `evaluate`, in reading order."""
    views: Mapping[str, Mapping[str, Any]] = result["views"]
    rows: list[Row] = []

    def add(label: str, kind: str, parts: Mapping[str, Any], value: str, interval: str) -> None:
        values = {view: part[value] for view, part in parts.items() if part[value] is not None}
        intervals = {view: parts[view].get(interval) for view in values}
        retained = _retained(parts, values) if kind == "share" else {}
        recovered = _recovered(kind, values, intervals)
        rows.append(Row(label, kind, values, intervals, retained, recovered))

    agreement = {view: part["agreement"] for view, part in views.items() if "agreement" in part}
    if agreement:
        if ORIGINAL in views:  # by definition
            agreement = {ORIGINAL: {"kl": 0.0, "top1": 1.0}, **agreement}
        add("KL to original (nats)", "kl", agreement, "kl", "kl_ci95")
        add("top-1 agreement", "share", agreement, "top1", "top1_ci95")
    for window in _keys(views, "perplexity"):
        parts = {view: part["perplexity"][window] for view, part in views.items()}
        add(f"perplexity, {int(window):,} tokens", "perplexity", parts, "ppl", "ppl_ci95")
    for task in _keys(views, "tasks"):
        parts = {view: part["tasks"][task] for view, part in views.items()}
        metric = next(iter(parts.values()))["metric"]
        add(f"{task} ({metric})", "share", parts, "score", "ci95")
    passkey = {view: part["passkey"] for view, part in views.items() if "passkey" in part}
    if passkey:
        add("pass key", "share", passkey, "accuracy", "ci95")
    return rows


def _keys(views: Mapping[str, Mapping[str, Any]], section: str) -> list[str]:
    """Windows or tasks that every view has."""
    sections = [part.get(section, {}) for part in views.values()]
    return [key for key in (sections[0] if sections else {}) if all(key in s for s in sections)]


def _retained(parts: Mapping[str, Any], values: dict[str, float]) -> dict[str, float]:
    original = values.get(ORIGINAL)
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
    if kind == "perplexity":
        original, stretched, restored = map(math.log, (original, stretched, restored))
        if stretched - original < LEAST_PERPLEXITY_GAP:
            return None
    elif kind == "share":
        # Without a loss outside the original's own interval there is nothing to recover.
        interval = intervals[ORIGINAL]
        if stretched >= (interval[0] if interval else original):
            return None
    if stretched == original:
        return None
    return (restored - stretched) / (original - stretched)
