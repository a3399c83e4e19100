"""Backward, from the host: one launch for self-relations, one each for queries and keys."""

from __future__ import annotations

import torch
import triton

from linearard.ops.relation_kl.triton.backward_kernel import backward_kernel
from linearard.ops.relation_kl.triton.relations import first_heads, strides, swept
from linearard.ops.relation_kl.triton.tiles import (
    LOG2_E,
    backward_tile,
    heads_together,
    on_device,
    padded,
    precision,
    row_major,
    seen_operands,
    tma_fits,
)

_HALF_PEAK = 2.0**14  # float16 weights are scaled to at most this, out of the subnormal range


def _gradients(a, b, rows, columns, grad, stats, seen, causal, scale):
    """Gradients of the student's ``a`` in each relation.

    ``a``, ``b``: (teachers, students), of a self-relation the same; ``grad`` [sum of B * H, N], over
    the sum of the row's exponentials; ``seen``: ``seen_operands``.
    """
    (a_t, a_s), (b_t, b_s) = a, b
    like = a_s[0]
    batch, _, tokens, head_dim = like.shape
    kind = torch.float32 if like.dtype == torch.float16 else like.dtype
    out = [torch.empty(x.shape, dtype=kind, device=x.device) for x in a_s]
    tile = backward_tile(like)
    tma = tma_fits(*b_t, *b_s)
    all_heads = batch * sum(x.shape[1] for x in a_s)
    with on_device(like):
        backward_kernel[(all_heads * triton.cdiv(tokens, tile.rows),)](
            tuple(a_t),
            tuple(a_s),
            *swept(b_t, b_s, tile.columns, tma),
            tuple(out),
            stats,
            grad,
            *seen,
            *(strides(x) for x in (a_t, a_s, b_t, b_s)),
            tokens,
            first_heads(a_s),
            tuple(x.shape[1] for x in a_s),
            tuple(x.shape[1] for x in b_s),
            1 if rows and columns else heads_together(b_s[0]),
            scale * LOG2_E,
            scale,
            DIM=head_dim,
            WIDTH=padded(head_dim),
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            CAUSAL=causal,
            ROW=rows,
            COL=columns,
            EVEN=tokens % tile.columns == 0,
            HAS_VALID=seen[0] is not None,
            BANDED=seen[2] is not None,
            TMA=tma,
            PRECISION=precision(like),
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=True,  # Triton 3.10 fuses multiply-adds no longer unasked
        )
    return out


def _scaled(grad, dtype):
    """``grad``, and what it was divided by to fit ``dtype`` (None where nothing need be)."""
    if dtype != torch.float16:
        return grad, None
    peak = grad.abs().amax().clamp_min(1e-30) / _HALF_PEAK
    return grad / peak, peak


def _restored(gradient, peak, dtype):
    return gradient if gradient is None or peak is None else gradient.mul_(peak).to(dtype)


def backward(grads, stats, relations, visible, scale, needs):
    """Gradients of the students in their dtype; see ``autograd.Implementation``."""
    like = relations[0].q_s
    tokens, dtype = like.shape[2], like.dtype
    result = [(None, None)] * len(relations)
    asked = [i for i, g in enumerate(grads) if g is not None and any(needs[i])]
    if not asked:
        return result
    if tokens == 1:
        # nothing to learn, and Triton would make the 1 a constant of the kernel: ptxas 12.8 dies of
        # what is left of a causal self-relation then
        for i in asked:
            students = (relations[i].q_s, relations[i].k_s)
            result[i] = tuple(None if x is None else torch.zeros_like(x) for x in students)
        return result

    (stats,) = stats
    heads = [r.q_s.shape[0] * r.q_s.shape[1] for r in relations]
    if len(asked) < len(relations):
        parts = stats.split(heads, 1)
        stats = torch.cat([parts[i] for i in asked], 1)
    scaled, peaks = zip(*(_scaled(grads[i], dtype) for i in asked), strict=True)
    # what each row is divided by, so that a pair need not be
    grad = torch.cat([g.reshape(-1, tokens) for g in scaled]) * stats[3]
    seen = seen_operands(visible, tokens, like.device)
    common = (grad, stats, seen, visible.causal, scale)
    queries = [row_major(*(relations[i][side] for i in asked)) for side in (0, 2)]
    if relations[0].k_s is None:
        gradients = _gradients(queries, queries, True, True, *common)
        for i, gradient, peak in zip(asked, gradients, peaks, strict=True):
            result[i] = (_restored(gradient, peak, dtype), None)
        return result
    (relation,), (peak,) = relations, peaks
    keys = [row_major(relation.k_t), row_major(relation.k_s)]
    gradients = (
        _gradients(queries, keys, True, False, *common)[0] if needs[0][0] else None,
        _gradients(keys, queries, False, True, *common)[0] if needs[0][1] else None,
    )
    return [tuple(_restored(g, peak, dtype) for g in gradients)]
