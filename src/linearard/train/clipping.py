"""Gradients clipped to a norm; on a GPU they are read once where nothing is to be clipped."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

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
    norm = torch.nn.utils.get_total_norm(gradients)
    pointwise.scale_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))
    return norm
