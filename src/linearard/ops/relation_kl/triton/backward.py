"""Backward, from the host: one launch for a self-relation, one each for queries and keys."""

from __future__ import annotations

import torch
import triton

from linearard.ops.relation_kl.triton.backward_kernel import backward_kernel
from linearard.ops.relation_kl.triton.tiles import (
    LOG2_E,
    backward_tile,
    descriptor,
    heads_together,
    on_device,
    padded,
    precision,
    row_major,
    seen_operands,
    tma_fits,
)

_HALF_PEAK = 2.0**14  # float16 weights are scaled to at most this, out of the subnormal range


def _gradient(a, b, rows, columns, grad, stats, seen, causal, scale):
    """Gradient of the student's ``a``; ``a``, ``b``: (teacher, student); ``seen``: seen_operands."""
    (a_t, a_s), (b_t, b_s) = a, b
    batch, a_heads, tokens, head_dim = a_s.shape
    half = a_s.dtype == torch.float16
    out = torch.empty(a_s.shape, dtype=torch.float32 if half else a_s.dtype, device=a_s.device)
    tile = backward_tile(a_s)
    tma = tma_fits(b_t, b_s)
    with on_device(a_s):
        backward_kernel[(batch * a_heads * triton.cdiv(tokens, tile.rows),)](
            a_t,
            a_s,
            descriptor(b_t, tile.columns) if tma else b_t,
            descriptor(b_s, tile.columns) if tma else b_s,
            out,
            stats,
            grad,
            *seen,
            *a_t.stride()[:3],
            *a_s.stride()[:3],
            *b_t.stride()[:3],
            *b_s.stride()[:3],
            tokens,
            a_heads,
            b_s.shape[1],
            1 if rows and columns else heads_together(b_s),
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
            PRECISION=precision(a_s),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


def backward(grad, stats, q_t, k_t, q_s, k_s, visible, scale, needs):
    """Gradients of the student in its dtype; see ``autograd.Implementation``."""
    dtype = q_s.dtype
    if q_s.shape[2] == 1:
        # nothing to learn, and Triton would make the 1 a constant of the kernel: ptxas 12.8 dies of
        # what is left of a causal self-relation then
        return tuple(None if x is None else torch.zeros_like(x) for x in (q_s, k_s))
    peak = None
    if dtype == torch.float16:
        peak = grad.abs().amax().clamp_min(1e-30) / _HALF_PEAK
        grad = grad / peak
    grad = (grad * stats[3]).contiguous()  # what each row is divided by, so that a pair need not be
    seen = seen_operands(visible, q_s.shape[2], q_s.device)
    common = (grad, stats, seen, visible.causal, scale)
    queries = row_major(q_t, q_s)
    if k_s is None:
        grads = (_gradient(queries, queries, True, True, *common), None)
    else:
        keys = row_major(k_t, k_s)
        grads = (
            _gradient(queries, keys, True, False, *common) if needs[0] else None,
            _gradient(keys, queries, False, True, *common) if needs[1] else None,
        )
    if peak is not None:
        grads = tuple(g if g is None else g.mul_(peak).to(dtype) for g in grads)
    return grads
