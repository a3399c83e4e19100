"""The one door to the relation KL: check the operands, choose an implementation, reduce."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from linearard.errors import OperandError
from linearard.ops.relation_kl import chunked, reference
from linearard.ops.relation_kl.autograd import LinearMemoryRows
from linearard.ops.relation_kl.checks import (
    check_operands,
    check_reduction,
    expanded_weights,
    positive,
)
from linearard.ops.relation_kl.visibility import Visibility

_IMPLEMENTATIONS = ("reference", "chunked", "triton")
_TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_TRITON_MAX_HEAD_DIM = 256


def relation_kl(
    teacher: Tensor,
    student: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    cu_seqlens: Tensor | Sequence[int] | None = None,
    scale: float | None = None,
    temperature: float = 1.0,
    lengths: Tensor | Sequence[int] | None = None,
    mask: Tensor | None = None,
    row_weights: Tensor | None = None,
    reduction: str = "mean",
    implementation: str | None = None,
) -> Tensor:
    """KL between the self-relations of two models: each head attends to itself, q = k.

    Args:
        teacher: [B, H, N, D], one of the queries, keys or values as attention consumes them.
        student: the same of the student; gradients flow to it alone.
        causal: as in :func:`attention_kl`, like all that follow.
        window: how far a row sees, its own token included.
        cu_seqlens: int [documents + 1], boundaries of packed documents.
        scale: default ``D ** -0.5``.
        temperature: divides both scores.
        lengths: [B] valid tokens at the start of each sequence.
        mask: bool [B, N], True where the token is valid.
        row_weights: weights of the rows, broadcasting to [B, H, N].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        implementation: ``"reference"``, ``"chunked"``, ``"triton"`` or None.

    Returns:
        What :func:`attention_kl` returns.

    Raises:
        OperandError: as :func:`attention_kl`.
    """
    return attention_kl(
        teacher,
        teacher,
        student,
        student,
        causal=causal,
        window=window,
        cu_seqlens=cu_seqlens,
        scale=scale,
        temperature=temperature,
        lengths=lengths,
        mask=mask,
        row_weights=row_weights,
        reduction=reduction,
        implementation=implementation,
    )


def attention_kl(
    q_t: Tensor,
    k_t: Tensor,
    q_s: Tensor,
    k_s: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    cu_seqlens: Tensor | Sequence[int] | None = None,
    scale: float | None = None,
    temperature: float = 1.0,
    lengths: Tensor | Sequence[int] | None = None,
    mask: Tensor | None = None,
    row_weights: Tensor | None = None,
    reduction: str = "mean",
    implementation: str | None = None,
) -> Tensor:
    """KL(teacher || student) between the attention distributions of two models, row by row.

    Row i of a head is ``softmax_j(scale / temperature * <q_i, k_j>)`` over the columns j that it
    sees: those of valid tokens that causality, window and documents leave. A row counts if its own
    token is valid. What invalid tokens hold never matters, NaN included. A row that sees one column
    is 0, and so is its gradient.

    Args:
        q_t: teacher queries [B, H, N, D] in bfloat16, float16, float32 or float64.
        k_t: teacher keys [B, Hkv, N, D]; H is a multiple of Hkv, and query head h reads key
            head ``h // (H // Hkv)``.
        q_s: student queries, as ``q_t``. Gradients flow to ``q_s`` and ``k_s`` alone.
        k_s: student keys, as ``k_t``.
        causal: rows see columns up to themselves; otherwise all of them.
        window: row i sees columns ``i - window < j``, and without ``causal`` only those with
            ``j < i + window`` too. Work grows with N times the window.
        cu_seqlens: int [documents + 1], 0 = cu[0] <= cu[1] <= ... = N, for a batch of 1: tokens
            cu[d] ... cu[d + 1] - 1 are a document and see each other alone. Empty documents are
            allowed. Values are checked on the CPU; on a device, tokens behind the last boundary
            are one more document. ``"chunked"`` waits for a device to read them.
        scale: of the scores; default ``D ** -0.5``.
        temperature: divides both scores.
        lengths: int [B], valid tokens at the start of each sequence. Values are checked where
            that needs no wait for a device; on a device, longer than N means N.
        mask: bool [B, N], True where the token is valid, in any pattern.
        row_weights: floating point [B, H, N], or with 1 where a dimension shares them, of 0 or
            more (checked on the CPU). Constants: they get no gradient.
        reduction: ``"mean"`` over valid rows and heads, with weights ``sum w KL / sum w`` (0 if
            nothing counts); ``"sum"`` of ``w KL``; or ``"none"``: ``w KL`` of each row, [B, H, N]
            with 0 in the rows that do not count.
        implementation: ``"reference"`` (dense), ``"chunked"`` (linear memory, any device),
            ``"triton"`` (NVIDIA GPU, head_dim <= 256, not float64), or None for the fastest
            that fits.

    Returns:
        Nats, in float32 (float64 for float64 operands).

    Raises:
        OperandError: operands or options do not fit together, or the implementation asked for
            cannot take them.
    """
    check_operands(q_t, k_t, q_s, k_s)
    batch, _, tokens, head_dim = q_s.shape
    scale = positive("scale", head_dim**-0.5 if scale is None else scale)
    scale = scale / positive("temperature", temperature)
    visible = Visibility.of(
        (batch, tokens),
        q_s.device,
        causal=causal,
        window=window,
        cu_seqlens=cu_seqlens,
        lengths=lengths,
        mask=mask,
    )
    if row_weights is not None:
        row_weights = expanded_weights(row_weights, q_s, visible.valid)
    check_reduction(reduction)
    implementation = _choose(implementation, q_s)

    self_relation = k_t is q_t and k_s is q_s
    q_t, k_t = q_t.detach(), k_t.detach()
    if visible.valid is not None:
        gone = ~visible.valid[:, None, :, None]
        q_t, q_s = q_t.masked_fill(gone, 0.0), q_s.masked_fill(gone, 0.0)
        if not self_relation:
            k_t, k_s = k_t.masked_fill(gone, 0.0), k_s.masked_fill(gone, 0.0)
    if self_relation:
        k_t, k_s = q_t, q_s

    with torch.autocast(q_s.device.type, enabled=False):
        if q_s.numel() == 0:  # no rows, but a graph that reaches the student
            rows = (q_s.sum(-1) + k_s.sum()).to(torch.promote_types(q_s.dtype, torch.float32))
        elif implementation == "reference":
            rows = reference.kl_rows(q_t, k_t, q_s, k_s, visible=visible, scale=scale)
        else:
            if self_relation:
                k_t = k_s = None
            rows = LinearMemoryRows.apply(
                _linear_memory(implementation), q_t, k_t, q_s, k_s, visible, scale
            )
        return _reduce(rows, visible.valid, row_weights, reduction)


def _reduce(rows: Tensor, valid: Tensor | None, weights: Tensor | None, reduction: str) -> Tensor:
    if valid is not None:  # an upstream gradient at an invalid row stops here
        rows = rows.masked_fill(~valid[:, None], 0.0)
    if weights is not None:
        weights = weights.to(rows.dtype)
        rows = rows * weights
    if reduction == "none":
        return rows
    total = rows.sum()
    if reduction == "sum":
        return total
    if weights is not None:
        weight = weights.sum()
        return total / weight.masked_fill(weight == 0, 1.0)
    if valid is None:
        return total / max(1, rows.numel())
    return total / (valid.sum() * rows.shape[1]).clamp_min(1)


def _linear_memory(implementation: str):
    if implementation == "chunked":
        return chunked
    from linearard.ops.relation_kl import triton

    return triton


def _choose(implementation: str | None, student: Tensor) -> str:
    head_dim, dtype, device = student.shape[-1], student.dtype, student.device
    has_triton = importlib.util.find_spec("triton") is not None
    fits = dtype in _TRITON_DTYPES and head_dim <= _TRITON_MAX_HEAD_DIM
    nvidia = device.type == "cuda" and torch.version.hip is None
    if implementation is None:
        return "triton" if has_triton and fits and nvidia else "chunked"
    if implementation not in _IMPLEMENTATIONS:
        raise OperandError(
            expected="implementation None, 'reference', 'chunked' or 'triton'",
            got=repr(implementation),
            fix="Leave it out to get the fastest that fits.",
        )
    if implementation == "triton":
        if not has_triton:
            raise OperandError(
                expected="Triton for implementation='triton'",
                got="an environment without it",
                fix="Install triton, or ask for implementation='chunked'.",
            )
        if dtype not in _TRITON_DTYPES:
            raise OperandError(
                expected="bfloat16, float16 or float32 for implementation='triton'",
                got=str(dtype).removeprefix("torch."),
                fix="Cast to float32, or ask for implementation='chunked'.",
            )
        if head_dim > _TRITON_MAX_HEAD_DIM:
            raise OperandError(
                expected=f"head_dim up to {_TRITON_MAX_HEAD_DIM} for implementation='triton'",
                got=f"head_dim {head_dim}",
                fix="Ask for implementation='chunked', which takes any head_dim.",
            )
        if not nvidia and not _interpreted():
            raise OperandError(
                expected="tensors on an NVIDIA GPU for implementation='triton'",
                got=f"tensors on {device}",
                fix="Move them to 'cuda', or ask for implementation='chunked'.",
            )
    return implementation


def _interpreted() -> bool:
    from triton import knobs

    return knobs.runtime.interpret
