"""The one custom gradient: it saves the inputs and a few statistics a row, and recomputes the rest."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from linearard.ops.relation_kl.visibility import Visibility


class Implementation(Protocol):
    """What a linear-memory implementation provides; ``k`` is None for a self-relation (k = q).

    ``q`` [B, H, N, D], ``k`` [B, Hkv, N, D], none of them 0. Tokens that are not valid hold zeros.
    ``stats`` is opaque to the caller and comes back to ``backward`` as it was.
    """

    def forward(
        self,
        q_t: Tensor,
        k_t: Tensor | None,
        q_s: Tensor,
        k_s: Tensor | None,
        visible: Visibility,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """KL of every row [B, H, N], and what ``backward`` needs to know of the rows."""
        ...

    def backward(
        self,
        grad: Tensor,
        stats: Tensor,
        q_t: Tensor,
        k_t: Tensor | None,
        q_s: Tensor,
        k_s: Tensor | None,
        visible: Visibility,
        scale: float,
        needs: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of ``q_s`` and ``k_s``, those that ``needs`` names; ``grad`` is [B, H, N]."""
        ...


class LinearMemoryRows(torch.autograd.Function):
    """KL of every row [B, H, N] through an :class:`Implementation`."""

    @staticmethod
    def forward(ctx, implementation, q_t, k_t, q_s, k_s, visible, scale):
        """See :class:`Implementation`."""
        rows, stats = implementation.forward(q_t, k_t, q_s, k_s, visible, scale)
        ctx.save_for_backward(stats, q_t, k_t, q_s, k_s, visible.cu_seqlens, visible.valid)
        ctx.visible = visible._replace(cu_seqlens=None, valid=None)
        ctx.implementation, ctx.scale = implementation, scale
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """Gradients reach the student only."""
        *operands, cu_seqlens, valid = ctx.saved_tensors
        visible = ctx.visible._replace(cu_seqlens=cu_seqlens, valid=valid)
        needs = (ctx.needs_input_grad[3], ctx.needs_input_grad[4])
        grad_q, grad_k = ctx.implementation.backward(grad, *operands, visible, ctx.scale, needs)
        return None, None, None, grad_q, grad_k, None, None
