"""The one door to the relation KL: a relation, attention, or the relations of a layer together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from linearard.ops.relation_kl.checks import (
    Operands,
    check_layer,
    check_operands,
    check_reduction,
    expanded_weights,
    positive,
    scales_of,
)
from linearard.ops.relation_kl.dispatch import choose, kl_rows, reduce_rows
from linearard.ops.relation_kl.visibility import Visibility


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
    deterministic: bool = True,
    implementation: str | None = None,
) -> Tensor:
    """KL between the self-relations of two models: each head attends to itself, q = k.

    Args:
        teacher: [B, H, N, D], one of the queries, keys or values as attention consumes them.
        student: the same of the student; gradients flow to it alone.
        causal: as in `attention_kl`, like all that follow.
        window: how far a row sees, its own token included.
        cu_seqlens: int [documents + 1], boundaries of packed documents.
        scale: default ``D ** -0.5``.
        temperature: divides both scores.
        lengths: [B] valid tokens at the start of each sequence.
        mask: bool [B, N], True where the token is valid.
        row_weights: weights of the rows, broadcasting to [B, H, N].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        deterministic: gradients that repeat to the bit.
        implementation: ``"reference"``, ``"chunked"``, ``"triton"``, ``"hopper"`` or None.

    Returns:
        What `attention_kl` returns.

    Raises:
        OperandError: as `attention_kl`.
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
        deterministic=deterministic,
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
    deterministic: bool = True,
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
        deterministic: gradients repeat to the bit. False lets the kernels of ``"hopper"``, the
            only ones that would not otherwise, add their parts in any order where order costs time
            (unless ``torch.use_deterministic_algorithms`` is on).
        implementation: ``"reference"`` (dense), ``"chunked"`` (linear memory, any device),
            ``"triton"`` (NVIDIA GPU, head_dim <= 256, not float64), ``"hopper"`` (H100, H200:
            causal relations without invalid tokens in bfloat16, head_dim 64 or 128), or None for
            the fastest that fits.

    Returns:
        Nats, in float32 (float64 for float64 operands).

    Raises:
        OperandError: operands or options do not fit together, or the implementation asked for
            cannot take them.
    """
    one = Operands(q_t, k_t, q_s, k_s)
    check_operands(one)
    return _reduced(
        {"": one},
        causal=causal,
        window=window,
        cu_seqlens=cu_seqlens,
        scale=scale,
        temperature=temperature,
        lengths=lengths,
        mask=mask,
        row_weights=row_weights,
        reduction=reduction,
        deterministic=deterministic,
        implementation=implementation,
    )[""]


def layer_relation_kl(
    relations: Mapping[str, Sequence[Tensor]],
    *,
    causal: bool = True,
    window: int | None = None,
    cu_seqlens: Tensor | Sequence[int] | None = None,
    scale: float | Mapping[str, float] | None = None,
    temperature: float = 1.0,
    lengths: Tensor | Sequence[int] | None = None,
    mask: Tensor | None = None,
    row_weights: Tensor | None = None,
    reduction: str = "mean",
    deterministic: bool = True,
    implementation: str | None = None,
) -> dict[str, Tensor]:
    """The relations of one layer in one call: to the bit what a call of each gives.

    On a GPU up to three self-relations that differ in their heads alone share one launch forward
    and one backward, so that those of few heads (grouped keys and values) do not leave it idle.

    Args:
        relations: by name: (teacher, student) of a self-relation, as `relation_kl` takes
            them, or (q_t, k_t, q_s, k_s), as `attention_kl` does. Heads, head_dim and dtype
            may differ between relations; batch, tokens and device may not.
        causal: as in `attention_kl`, like all that follow.
        window: how far a row sees, its own token included.
        cu_seqlens: int [documents + 1], boundaries of packed documents.
        scale: of all relations, or by name; default ``D ** -0.5``, each its own D.
        temperature: divides all scores.
        lengths: [B] valid tokens at the start of each sequence.
        mask: bool [B, N], True where the token is valid.
        row_weights: weights of the rows, broadcasting to [B, H, N] of every relation.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, of each relation by itself.
        deterministic: gradients that repeat to the bit.
        implementation: ``"reference"``, ``"chunked"``, ``"triton"``, ``"hopper"`` or None.

    Returns:
        By name, in the order given, what `attention_kl` returns of that relation.

    Raises:
        OperandError: as `attention_kl`, naming the relation; or relations do not fit
            together.
    """
    return _reduced(
        check_layer(relations),
        causal=causal,
        window=window,
        cu_seqlens=cu_seqlens,
        scale=scale,
        temperature=temperature,
        lengths=lengths,
        mask=mask,
        row_weights=row_weights,
        reduction=reduction,
        deterministic=deterministic,
        implementation=implementation,
    )


def _reduced(
    relations: dict[str, Operands],
    *,
    causal: bool,
    window: int | None,
    cu_seqlens: Tensor | Sequence[int] | None,
    scale: float | Mapping[str, float] | None,
    temperature: float,
    lengths: Tensor | Sequence[int] | None,
    mask: Tensor | None,
    row_weights: Tensor | None,
    reduction: str,
    deterministic: bool,
    implementation: str | None,
) -> dict[str, Tensor]:
    """See ``layer_relation_kl``; the operands are checked."""
    like = next(iter(relations.values())).q_s
    temperature = positive("temperature", temperature)
    scales = scales_of(scale, relations, temperature)
    visible = Visibility.of(
        (like.shape[0], like.shape[2]),
        like.device,
        causal=causal,
        window=window,
        cu_seqlens=cu_seqlens,
        lengths=lengths,
        mask=mask,
    )
    weights = dict.fromkeys(relations)
    if row_weights is not None:
        weights = {
            name: expanded_weights(row_weights, x.q_s, visible.valid)
            for name, x in relations.items()
        }
    check_reduction(reduction)
    chosen = {name: choose(implementation, x.q_s) for name, x in relations.items()}
    device = like.device.type
    autocast = torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        rows = kl_rows(relations, scales, visible, chosen, deterministic)
        return {
            name: reduce_rows(x, visible.valid, weights[name], reduction)
            for name, x in rows.items()
        }
