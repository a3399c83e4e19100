"""How a trained weight becomes one of fewer bits, and how much of what training changed is left.

At small learning rates a weight of a bfloat16 model changes by less than half of the distance to the next
number that bfloat16 has: rounded to the nearest, most of the change is gone, and what is left points
elsewhere. Stochastic rounding goes to either neighbour with a probability that makes the mean right: every
weight alone is as coarse, but products over hundreds of inputs see the whole change.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


def stochastic(trained: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Round up or down at random, so that the expectation is the number itself.

    Args:
        trained: float32, any shape.
        dtype: of the result: bfloat16 or float16.
        name: of the weight; the same name and numbers give the same result.

    Returns:
        The same shape in `dtype`; numbers that `dtype` has stay as they are.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1
    generator = torch.Generator(trained.device).manual_seed(seed)
    nearest = trained.to(dtype)
    error = trained - nearest.float()
    # The bits of a number in half precision, read as an integer, count through the numbers of one sign.
    outward = (error > 0) == (nearest >= 0)
    other = (nearest.view(torch.int16) + torch.where(outward, 1, -1).to(torch.int16)).view(dtype)
    if (zero := nearest == 0).any():
        smallest = torch.ones((), dtype=torch.int16, device=trained.device).view(dtype)
        other = torch.where(zero, torch.copysign(smallest.float(), error).to(dtype), other)
    gap = other.float() - nearest.float()
    share = torch.where(error == 0, 0.0, error / gap)
    drawn = torch.rand(trained.shape, generator=generator, device=trained.device)
    return torch.where(drawn < share, other, nearest)


@dataclass
class KeptChange:
    """How much of what training changed is left after rounding, summed over weights."""

    by_name: dict[str, dict[str, float]] = field(default_factory=dict)
    _sums: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def add(self, name: str, original: Tensor, trained: Tensor, kept: Tensor) -> None:
        """Count one weight: the base model's, the trained one in float32, and what is written."""
        change = (trained.double() - original.double()).flatten()
        left = (kept.double() - original.double()).flatten()
        sums = tuple(float(a @ b) for a, b in ((left, change), (change, change), (left, left)))
        if sums[1] > 0.0:
            self.by_name[name] = _figures(*sums)
            self._sums = tuple(a + b for a, b in zip(self._sums, sums, strict=True))

    @property
    def total(self) -> dict[str, float]:
        """`share` of the change that is left (its projection), `cosine` with it, `norm` over its norm."""
        return _figures(*self._sums)


def _figures(dot: float, whole: float, part: float) -> dict[str, float]:
    if whole == 0.0:
        return {"share": 1.0, "cosine": 1.0, "norm": 1.0}
    cosine = dot / math.sqrt(whole * part) if part else 0.0
    return {"share": dot / whole, "cosine": cosine, "norm": math.sqrt(part / whole)}
