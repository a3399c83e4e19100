"""Bootstrap intervals and numbers that may overflow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

RESAMPLES = 1000


def mean(values: Sequence[float]) -> float:
    """The mean of at least one number."""
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def bootstrap_interval(values: Sequence[float], seed: int) -> list[float] | None:
    """The 95 % percentile-bootstrap interval of the mean: [low, high].

    None with fewer than two different values, or where one is not finite: resampling then says
    nothing about the uncertainty.
    """
    if len(set(values)) < 2:
        return None
    return interval(resampled_means([values], torch.Generator().manual_seed(seed))[:, 0])


def resampled_means(samples: Sequence[Sequence[float]], generator: torch.Generator) -> Tensor:
    """Means of bootstrap resamples, paired: each resample draws the same records of every sample.

    Args:
        samples: the samples, all about the same records in the same order.
        generator: what the draws come from.

    Returns:
        float64 [RESAMPLES, samples].
    """
    table = torch.tensor(samples, dtype=torch.float64)
    count = table.shape[1]
    return torch.stack(
        [
            table[:, torch.randint(count, (count,), generator=generator)].mean(1)
            for _ in range(RESAMPLES)
        ]
    )


def interval(resamples: Tensor) -> list[float] | None:
    """The middle 95 % of float64 [RESAMPLES]; None where they are all equal or one is not finite."""
    if not resamples.isfinite().all() or (resamples == resamples[0]).all():
        return None
    return torch.quantile(resamples, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()


def perplexity(nll: float) -> float:
    """exp(nll), infinite where it overflows."""
    return math.exp(nll) if nll < 700 else math.inf if nll >= 700 else math.nan
