"""The one custom gradient: it saves the inputs and a few statistics a row, and recomputes the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from linearard.ops.derivatives import first_derivatives_only
from linearard.ops.relation_kl.visibility import Visibility


class Relation(NamedTuple):
    """Operands of one relation; keys are None in a self-relation (k = q).

    Attributes:
        q_t: teacher queries [B, H, N, D], none of them 0.
        k_t: teacher keys [B, Hkv, N, D].
        q_s: student queries, as ``q_t``.
        k_s: student keys, as ``k_t``.
    """

    q_t: Tensor
    k_t: Tensor | None
    q_s: Tensor
    k_s: Tensor | None


class Implementation(Protocol):
    """What a linear-memory implementation provides.

    It is given one relation, or up to three self-relations that differ in their heads alone.
    Tokens that are not valid hold zeros.
    """

    def forward(
        self, relations: Sequence[Relation], visible: Visibility, scale: float
    ) -> tuple[list[Tensor], list[Tensor]]:
        """KL of every row, [B, H, N] a relation, and what ``backward`` needs to know of the rows."""
        ...

    def backward(
        self,
        grads: Sequence[Tensor | None],
        stats: Sequence[Tensor],
        relations: Sequence[Relation],
        visible: Visibility,
        scale: float,
        needs: Sequence[tuple[bool, bool]],
    ) -> list[tuple[Tensor | None, Tensor | None]]:
        """Gradients of ``q_s`` and ``k_s`` of each relation, those that ``needs`` names.

        ``grads``: [B, H, N], or None where nothing depends on a relation; ``stats``: as forward
        returned them.
        """
        ...


class LinearMemoryRows(torch.autograd.Function):
    """KL of every row, [B, H, N] a relation, through an :class:`Implementation`."""

    @staticmethod
    def forward(ctx, implementation, visible, scale, *operands):
        """``operands``: the four of each :class:`Relation`, one after the other."""
        ctx.set_materialize_grads(False)
        relations = _relations(operands)
        rows, stats = implementation.forward(relations, visible, scale)
        ctx.save_for_backward(visible.cu_seqlens, visible.valid, *operands, *stats)
        ctx.visible = visible._replace(cu_seqlens=None, valid=None)
        ctx.implementation, ctx.scale, ctx.count = implementation, scale, len(operands)
        return tuple(rows)

    @staticmethod
    @first_derivatives_only(
        "the relation KL", "Set implementation to reference, which has derivatives of every order."
    )
    def backward(ctx, *grads):
        """Gradients reach the student only."""
        cu_seqlens, valid, *saved = ctx.saved_tensors
        visible = ctx.visible._replace(cu_seqlens=cu_seqlens, valid=valid)
        relations, stats = _relations(saved[: ctx.count]), saved[ctx.count :]
        asked = _relations(ctx.needs_input_grad[3:])
        needs = [(r.q_s, r.k_s) for r in asked]
        gradients = ctx.implementation.backward(grads, stats, relations, visible, ctx.scale, needs)
        return None, None, None, *(x for q, k in gradients for x in (None, None, q, k))


def _relations(operands: Sequence) -> list[Relation]:
    """Every four of ``operands`` in a :class:`Relation`; q_t, k_t, q_s, k_s."""
    return [Relation(*operands[i : i + 4]) for i in range(0, len(operands), 4)]
