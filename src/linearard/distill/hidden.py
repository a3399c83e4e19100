"""Hidden-state distillation: the student's hidden states near the teacher's (LongReD, arXiv 2502.07365)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def hidden_distance(
    teacher: Mapping[int, Tensor], student: Mapping[int, Tensor], mask: Tensor | None
) -> Tensor:
    """Mean over layers and tokens of `|student - teacher|^2 / |teacher|^2`, a float32 scalar.

    Relative to each token's own size: in many models a few tokens, the first one above all, have
    hidden states a hundred times larger than the rest and would be all that a plain distance sees.

    Args:
        teacher, student: hidden states `[batch, tokens, hidden]` by layer, of the same layers.
        mask: bool `[batch, tokens]`, False for padding, or None.
    """
    total = torch.zeros((), device=next(iter(student.values())).device)
    for layer, expected in teacher.items():
        expected, got = expected.float(), student[layer].float()
        distance = (got - expected).square().sum(-1) / expected.square().sum(-1)
        if mask is None:
            total = total + distance.mean()
        else:
            total = total + distance.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)
    return total / len(teacher)
