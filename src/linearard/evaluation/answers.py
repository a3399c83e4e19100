"""Whether a view answers the tasks as the original does, right or wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from linearard.evaluation.statistics import interval, mean, resampled_means
from linearard.evaluation.tasks import TaskScore


def compare_answers(
    view: Mapping[str, TaskScore], original: Mapping[str, TaskScore], seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """How alike two views' answers are: less coarse than their scores.

    A score of a few hundred records is uncertain by percents, and where the original guesses, it says
    nothing of what is kept. Answers can be compared all the same.

    Args:
        view, original: task to score, of the same records.
        seed: of the bootstrap, which draws records within each task.

    Returns:
        Task to the measures, and their plain means over tasks, each with its interval (`…_ci95`).
        `same_answers`: share of records with the same choice; for a last word: that both find or both
        miss. `answer_kl`: KL divergence in nats from the original's distribution over the choices to the
        view's, mean over records; a last word is a choice between itself and anything else.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, dict[str, Any]] = {}
    resamples = []  # of each task, float64 [resamples, measures]
    for task, score in view.items():
        other = original[task]
        same = [float(a == b) for a, b in zip(score.chosen, other.chosen, strict=True)]
        kl = list(map(_divergence, other.logprobs, score.logprobs))
        drawn = resampled_means([same, kl], generator)
        parts[task] = _measures([mean(same), mean(kl)], drawn)
        resamples.append(drawn)
    averages = [mean([part[name] for part in parts.values()]) for name in _MEASURES]
    return parts, _measures(averages, torch.stack(resamples).mean(0))


_MEASURES = ("same_answers", "answer_kl")


def _measures(values: Sequence[float], resamples: Tensor) -> dict[str, Any]:
    named = dict(zip(_MEASURES, values, strict=True))
    bounds = zip(_MEASURES, map(interval, resamples.T), strict=True)
    return named | {f"{name}_ci95": bound for name, bound in bounds}


def _divergence(original: list[float], view: list[float]) -> float:
    """KL divergence in nats between distributions over the choices of one record."""
    p, q = (_log_distribution(logprobs) for logprobs in (original, view))
    return (p.exp() * (p - q)).sum().item()


def _log_distribution(logprobs: list[float]) -> Tensor:
    """Logarithms of the probabilities of the choices, float64 [choices]."""
    if len(logprobs) == 1:
        (logprob,) = logprobs
        # A probability of 1 leaves nothing else: the least that float64 can tell from it stands for it.
        found = min(logprob, -math.ulp(1.0))
        logprobs = [found, math.log(-math.expm1(found))]
    return torch.tensor(logprobs, dtype=torch.float64).log_softmax(0)
