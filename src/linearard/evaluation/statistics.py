"""Bootstrap intervals and numbers that may overflow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

RESAMPLES = 1000


def mean(values: Sequence[float]) -> float:
    """The mean of at least one number."""
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def bootstrap_interval(values: Sequence[float], seed: int) -> list[float] | None:
    """The 95 % percentile-bootstrap interval of the mean: [low, high].

    None with fewer than two different values, or where one is not finite: resampling then says
    nothing about the uncertainty.
    """
    sample = torch.tensor(values, dtype=torch.float64)
    if len(sample.unique()) < 2 or not sample.isfinite().all():
        return None
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack(
        [
            sample[torch.randint(len(sample), sample.shape, generator=generator)].mean()
            for _ in range(RESAMPLES)
        ]
    )
    return torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()


def perplexity(nll: float) -> float:
    """exp(nll), infinite where it overflows."""
    return math.exp(nll) if nll < 700 else math.inf if nll >= 700 else math.nan
