"""RMS norm and the gated MLP with frozen weights, keeping little for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from linearard.ops import pointwise


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension; keeps x and a number a row."""
    return _Norm.apply(x, weight, eps)


def gated_mlp(x: Tensor, gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> Tensor:
    """`down(silu(gate(x)) * up(x))` without biases, x `[..., in]`; keeps the outputs of gate and up."""
    return _GatedMlp.apply(x, gate.weight, up.weight, down.weight)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, rstd = pointwise.rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return pointwise.rms_norm_backward(gradient, *ctx.saved_tensors), None, None


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            gated, raised = rows @ gate.mT, rows @ up.mT
            out = pointwise.swiglu(gated, raised) @ down.mT
        ctx.save_for_backward(gated, raised, gate, up, down)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        gated, raised, gate, up, down = ctx.saved_tensors
        shape = gradient.shape
        between = gradient.reshape(-1, shape[-1]) @ down
        to_gated, to_raised = pointwise.swiglu_backward(between, gated, raised)
        to_x = (to_gated @ gate).addmm_(to_raised, up)
        return to_x.view(*shape[:-1], -1), None, None, None
