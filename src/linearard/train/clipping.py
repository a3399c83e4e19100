"""Gradients clipped to a norm; on a GPU they are read once where nothing is to be clipped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from linearard.model.shares import is_sharded, local
from linearard.ops import pointwise


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """As `torch.nn.utils.clip_grad_norm_`, for parameters on one device.

    Args:
        parameters: those without a gradient are left out.
        most: the norm of all gradients together is at most this afterwards.

    Returns:
        The norm before, a scalar.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = total_norm(gradients)
    pointwise.scale_([local(g) for g in gradients], (most / (norm + 1e-6)).clamp(max=1.0))
    return norm


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, a scalar; of divided ones every process must ask at once."""
    norm = torch.nn.utils.get_total_norm([local(gradient) for gradient in gradients])
    if any(map(is_sharded, gradients)):
        squares = norm.square()
        torch.distributed.all_reduce(squares)
        norm = squares.sqrt()
    return norm
