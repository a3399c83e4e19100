"""lm-eval's values beside our own: means with intervals, and what a view keeps of the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from linearard.evaluation.harness.run import HarnessScore
from linearard.evaluation.retention import add_retention
from linearard.evaluation.statistics import bootstrap_interval, mean, resampled_means

Scores = Mapping[str, Mapping[str, HarnessScore]]  # view to task to score


def harness_results(scores: Scores, reference: str, seed: int) -> dict[str, dict[str, Any]]:
    """What `evaluate` says of the tasks of lm-eval.

    Args:
        scores: of all views, in the same tasks and records.
        reference: the view that the others are compared with.
        seed: of the bootstrap over records; it is paired, as in `task_results`.

    Returns:
        View to `lm_eval` and `ruler`, as far as there are such tasks.

        `lm_eval`: task to `metric`, `score`, `ci95`, `records`, `further`, `values` (of the records) and
        `raw_retention` with its interval, which is the score over the reference's.

        `ruler`: `accuracy`, `ci95`, `prompts` and `raw_retention` with its interval over all tasks; the
        same in `by_length`, by task in `tasks` (each with `by_length` and `values`), and means `by_seed`.
    """
    results: dict[str, dict[str, Any]] = {view: {} for view in scores}
    first = next(iter(scores.values()), {})
    for task in first:
        if first[task].lengths or not first[task].values:
            continue
        parts = _parts({view: scores[view][task].values for view in scores}, reference, seed)
        for view, part in parts.items():
            score = scores[view][task]
            about = {"metric": score.metric, **part, "further": score.further}
            results[view].setdefault("lm_eval", {})[task] = about | {"values": score.values}
    ruler = [task for task, score in first.items() if score.lengths]
    if ruler:
        for view, part in _ruler(scores, ruler, reference, seed).items():
            results[view]["ruler"] = part
    return results


def _ruler(
    scores: Scores, tasks: Sequence[str], reference: str, seed: int
) -> dict[str, dict[str, Any]]:
    first = next(iter(scores.values()))
    lengths = sorted({length for task in tasks for length in first[task].lengths})
    seeds = sorted({one for task in tasks for one in first[task].seeds})

    def parts(chosen: Sequence[str], length: int | None = None) -> dict[str, dict[str, Any]]:
        values = {
            view: [
                value
                for task in chosen
                for value, n in zip(of[task].values, of[task].lengths, strict=True)
                if length is None or n == length
            ]
            for view, of in scores.items()
        }
        renamed = {"score": "accuracy", "records": "prompts"}
        return {
            view: {renamed.get(name, name): value for name, value in part.items()}
            for view, part in _parts(values, reference, seed).items()
        }

    whole = parts(tasks)
    at = {str(length): parts(tasks, length) for length in lengths}
    each = {task: parts([task]) for task in tasks}
    each_at = {task: {str(n): parts([task], n) for n in lengths} for task in tasks}
    return {
        view: {
            **whole[view],
            "by_length": {length: part[view] for length, part in at.items()},
            "by_seed": {str(one): _mean_of_seed(scores[view], tasks, one) for one in seeds},
            "tasks": {
                task: {
                    **each[task][view],
                    "by_length": {n: part[view] for n, part in each_at[task].items()},
                    "values": scores[view][task].values,
                }
                for task in tasks
            },
        }
        for view in scores
    }


def _mean_of_seed(scores: Mapping[str, HarnessScore], tasks: Sequence[str], seed: int) -> float:
    return mean(
        [
            value
            for task in tasks
            for value, of in zip(scores[task].values, scores[task].seeds, strict=True)
            if of == seed
        ]
    )


def _parts(
    values: Mapping[str, Sequence[float]], reference: str, seed: int
) -> dict[str, dict[str, Any]]:
    """Of each view: score, interval, records, and what it keeps; chance is not known: none is taken off."""
    drawn = resampled_means(list(values.values()), torch.Generator().manual_seed(seed))
    resamples = dict(zip(values, drawn.T, strict=True))
    parts: dict[str, dict[str, Any]] = {
        view: {
            "score": mean(of),
            "ci95": bootstrap_interval(of, seed),
            "records": len(of),
            "chance": 0.0,
        }
        for view, of in values.items()
    }
    add_retention(parts, resamples, reference)
    for part in parts.values():
        for name in ("chance", "retention", "retention_ci95"):  # the raw one, then
            part.pop(name, None)
    return parts
