"""What a view keeps of the original's scores on the tasks, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from linearard.evaluation.answers import compare_answers
from linearard.evaluation.statistics import interval, mean, resampled_means
from linearard.evaluation.tasks import TaskScore


def task_results(
    scores: Mapping[str, Mapping[str, TaskScore]], reference: str, seed: int
) -> dict[str, dict[str, Any]]:
    """The results of all views on all tasks, their averages, and what they keep of the reference.

    Retention is the share of the reference's score above chance that is left; raw retention is the
    plain ratio of the two scores. Their intervals are paired: every resample draws the same
    records for the view and for the reference, and for an average it draws within each task. An
    interval is None where the reference is at or below chance in one of the resamples: the ratio
    has no bounds then. So is a retention whose reference is at or below chance.

    Args:
        scores: view to task to score; every view has the same tasks and records.
        reference: the view to compare with; without it no retention is given.
        seed: of the bootstrap.

    Returns:
        View to `{"tasks": {name: ...}, "task_average": ...}`. A task has what its score's
        `describe` gives, an average `score`, `ci95`, `chance` and `tasks` (their number); with a
        reference both have `retention`, `retention_ci95`, `raw_retention`, `raw_retention_ci95` and
        what `compare_answers` gives.
    """
    views = list(scores)
    tasks = list(next(iter(scores.values()), {}))
    if not tasks:
        return {}
    generator = torch.Generator().manual_seed(seed)
    results: dict[str, dict[str, Any]] = {view: {"tasks": {}} for view in views}
    resamples = []  # of each task, float64 [resamples, views]
    for task in tasks:
        drawn = resampled_means([scores[view][task].hits for view in views], generator)
        resamples.append(drawn)
        parts = {view: scores[view][task].describe(seed) for view in views}
        add_retention(parts, dict(zip(views, drawn.T, strict=True)), reference)
        for view, part in parts.items():
            results[view]["tasks"][task] = part
    averaged = dict(zip(views, torch.stack(resamples).mean(0).T, strict=True))
    averages: dict[str, dict[str, Any]] = {}
    for view in views:
        parts = results[view]["tasks"].values()
        averages[view] = {
            "score": mean([part["score"] for part in parts]),
            "ci95": interval(averaged[view]),
            "chance": mean([part["chance"] for part in parts]),
            "tasks": len(tasks),
        }
    add_retention(averages, averaged, reference)
    for view, average in averages.items():
        results[view]["task_average"] = average
    if reference in scores:
        for view in views:
            alike, average = compare_answers(scores[view], scores[reference], seed)
            results[view]["task_average"] |= average
            for task, part in alike.items():
                results[view]["tasks"][task] |= part
    return results


def retention(score: float, original: float, chance: float) -> float | None:
    """Share of the original's score above chance that is kept; None where it has none."""
    return (score - chance) / (original - chance) if original > chance else None


def add_retention(
    parts: Mapping[str, dict[str, Any]], resamples: Mapping[str, Tensor], reference: str
) -> None:
    """Add the four entries to each view's part, where the reference is among the views.

    Args:
        parts: of each view, `score` and `chance`.
        resamples: of each view, float64 [resamples]: means of the same records in the same order.
        reference: the view to compare with.
    """
    if reference not in parts:
        return
    score, below = parts[reference]["score"], resamples[reference]
    for view, part in parts.items():
        for name, chance in (("retention", part["chance"]), ("raw_retention", 0.0)):
            part[name] = retention(part["score"], score, chance)
            bounded = bool((below > chance).all())
            ratios = (resamples[view] - chance) / (below - chance)
            part[f"{name}_ci95"] = interval(ratios) if bounded else None
