"""Backward: the scores again, a tile at a time, and one product of their weights with the tokens.

One kernel serves the three gradients. Its program owns ROWS tokens of ``a`` and walks over the
tokens of ``b``; the weight of a pair is ``g (P_s - P_t)`` of the row that the pair belongs to:

    ROW   a are queries, b keys: the logsumexp of a's token      -> dq
    COL   a are keys, b queries: the logsumexp of b's token      -> dk, over the heads of a group
    both  a = b, a self-relation: S_ij = S_ji, so the tile below the diagonal gives the row part
          of a's tokens, and the tile above it their column part -> dx

No program writes what another one writes, so the result does not depend on their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from linearard.ops.relation_kl.triton.tiles import (
    LOG2_E,
    backward_tile,
    descriptor,
    heads_together,
    load_tokens,
    on_device,
    padded,
    place,
    precision,
    row_major,
    tma_fits,
    valid_operands,
)

_HALF_PEAK = 2.0**14  # float16 weights are scaled to at most this, out of the subnormal range


@triton.jit
def _probability(raw, c, lse, lost, PRECISION: tl.constexpr):
    exponent = raw * c - lse
    if PRECISION == "ieee":  # half precision has larger errors than what the rounding lost
        exponent -= lost
    return tl.exp2(exponent)


@triton.jit
def _load_lse(base, at, length, inside, MASKED: tl.constexpr):
    """The two parts of the logsumexps at ``at``; outside, probabilities become 0."""
    if MASKED:
        lse = tl.load(base + at, mask=inside, other=float("inf"))
        lost = tl.load(base + length + at, mask=inside, other=0.0)
    else:
        lse = tl.load(base + at)
        lost = tl.load(base + length + at)
    return lse, lost


@triton.jit
def _sweep(
    total,
    a_t,
    a_s,
    b_t,
    b_s,
    at_t,
    at_s,
    valid_base,
    lse_t_base,
    lse_s_base,
    grad_base,
    row_stats,
    length,
    rows,
    low,
    high,
    tokens,
    c,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROW: tl.constexpr,
    COL: tl.constexpr,
    DIAGONAL: tl.constexpr,
    EDGE: tl.constexpr,
    HAS_VALID: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add columns low ... high to ``total`` [ROWS, WIDTH]; DIAGONAL: some pairs see one way."""
    lse_t_row, lost_t_row, lse_s_row, lost_s_row, grad_row = row_stats
    for start in range(low, high, COLUMNS):
        tile_t = load_tokens(b_t, at_t, start, tokens, DIM, WIDTH, COLUMNS, EDGE, TMA)
        tile_s = load_tokens(b_s, at_s, start, tokens, DIM, WIDTH, COLUMNS, EDGE, TMA)
        columns = start + tl.arange(0, COLUMNS)
        raw_t = tl.dot(a_t, tl.trans(tile_t), input_precision=PRECISION)  # [ROWS, COLUMNS]
        raw_s = tl.dot(a_s, tl.trans(tile_s), input_precision=PRECISION)
        if ROW:
            p_s = _probability(raw_s, c, lse_s_row[:, None], lost_s_row[:, None], PRECISION)
            p_t = _probability(raw_t, c, lse_t_row[:, None], lost_t_row[:, None], PRECISION)
            weight = (p_s - p_t) * grad_row[:, None]
            if DIAGONAL or EDGE or HAS_VALID:
                seen = (columns < tokens)[None, :]
                if HAS_VALID:
                    flags = tl.load(valid_base + columns, mask=columns < tokens, other=0)
                    seen = (flags != 0)[None, :]
                if DIAGONAL:
                    seen = seen & (columns[None, :] <= rows[:, None])
                weight = tl.where(seen, weight, 0.0)
        if COL:
            inside = columns < tokens
            lse_t, lost_t = _load_lse(lse_t_base, columns, length, inside, EDGE)
            lse_s, lost_s = _load_lse(lse_s_base, columns, length, inside, EDGE)
            if EDGE:
                grad = tl.load(grad_base + columns, mask=inside, other=0.0)
            else:
                grad = tl.load(grad_base + columns)
            p_s = _probability(raw_s, c, lse_s[None, :], lost_s[None, :], PRECISION)
            p_t = _probability(raw_t, c, lse_t[None, :], lost_t[None, :], PRECISION)
            part = (p_s - p_t) * grad[None, :]
            if DIAGONAL:
                part = tl.where(columns[None, :] >= rows[:, None], part, 0.0)
            if ROW:
                weight += part
            else:
                weight = part
        total = tl.dot(weight.to(tile_s.dtype), tile_s, total, input_precision=PRECISION)
    return total


@triton.jit
def _backward_kernel(
    a_t,
    a_s,
    b_t,
    b_s,
    out,
    lse_t,
    lse_s,
    grad,
    valid,
    bounds,
    a_t_b,
    a_t_h,
    a_t_n,
    a_s_b,
    a_s_h,
    a_s_n,
    b_t_b,
    b_t_h,
    b_t_n,
    b_s_b,
    b_s_h,
    b_s_n,
    tokens,
    a_heads,
    b_heads,
    together,
    c,
    scale,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr,
    ROW: tl.constexpr,
    COL: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_VALID: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: the gradient of ROWS tokens of one head of ``a``."""
    blocks = tl.cdiv(tokens, ROWS)
    all_heads = tl.num_programs(0) // blocks
    head, block = place(blocks, all_heads, together)  # head of B * a_heads
    length = all_heads.to(tl.int64) * tokens  # of one part of a logsumexp
    if ROW:  # long rows first (with both parts all are equally long)
        block = blocks - 1 - block
    else:
        length *= b_heads // a_heads
    first = block * ROWS
    head = head.to(tl.int64)
    b = head // a_heads
    h = head % a_heads
    rows = first + tl.arange(0, ROWS)
    inside = rows < tokens
    at = (b, h, a_t_b, a_t_h, a_t_n)
    own_t = load_tokens(a_t, at, first, tokens, DIM, WIDTH, ROWS, True, False)
    at = (b, h, a_s_b, a_s_h, a_s_n)
    own_s = load_tokens(a_s, at, first, tokens, DIM, WIDTH, ROWS, True, False)
    if ROW:
        own = head * tokens + rows
        lse_t_row, lost_t_row = _load_lse(lse_t, own, length, inside, True)
        lse_s_row, lost_s_row = _load_lse(lse_s, own, length, inside, True)
        grad_row = tl.load(grad + own, mask=inside, other=0.0)
        row_stats = (lse_t_row, lost_t_row, lse_s_row, lost_s_row, grad_row)
        repeats = 1
    else:
        row_stats = (0, 0, 0, 0, 0)
        repeats = b_heads // a_heads

    low = 0
    high = tokens
    if HAS_VALID:
        valid += b * tokens
        low = tl.load(bounds + 2 * b) // COLUMNS * COLUMNS
        high = tl.load(bounds + 2 * b + 1)
        high = tl.where((first < high) & (first + ROWS > low), high, 0)
    diagonal = first // COLUMNS * COLUMNS  # the tiles that the diagonal crosses, to `beyond`
    beyond = tl.cdiv(first + ROWS, COLUMNS) * COLUMNS

    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for repeat in range(0, repeats):
        b_head = h // (a_heads // b_heads) if ROW else h * repeats + repeat
        at_t = (b, b_head, b_t_b, b_t_h, b_t_n)
        at_s = (b, b_head, b_s_b, b_s_h, b_s_n)
        stats = (b * b_heads + b_head) * tokens
        if CAUSAL:
            if ROW:
                total = _sweep(
                    total, own_t, own_s, b_t, b_s, at_t, at_s, valid,
                    lse_t + stats, lse_s + stats, grad + stats, row_stats, length,
                    rows, low, tl.minimum(diagonal, high), tokens, c, DIM, WIDTH, COLUMNS,
                    True, False, False, False, HAS_VALID, TMA, PRECISION,
                )  # fmt: skip
            total = _sweep(
                total, own_t, own_s, b_t, b_s, at_t, at_s, valid,
                lse_t + stats, lse_s + stats, grad + stats, row_stats, length,
                rows, tl.maximum(diagonal, low), tl.minimum(beyond, high), tokens, c,
                DIM, WIDTH, COLUMNS, ROW, COL, True, True, HAS_VALID, TMA, PRECISION,
            )  # fmt: skip
            if COL:
                total = _sweep(
                    total, own_t, own_s, b_t, b_s, at_t, at_s, valid,
                    lse_t + stats, lse_s + stats, grad + stats, row_stats, length,
                    rows, tl.maximum(beyond, low), high, tokens, c, DIM, WIDTH, COLUMNS,
                    False, True, False, not EVEN, HAS_VALID, TMA, PRECISION,
                )  # fmt: skip
        else:
            total = _sweep(
                total, own_t, own_s, b_t, b_s, at_t, at_s, valid,
                lse_t + stats, lse_s + stats, grad + stats, row_stats, length,
                rows, low, high, tokens, c, DIM, WIDTH, COLUMNS,
                ROW, COL, False, not EVEN, HAS_VALID, TMA, PRECISION,
            )  # fmt: skip

    dim = tl.arange(0, WIDTH)
    at = (head * tokens + rows)[:, None] * DIM + dim[None, :]
    keep = inside[:, None] & (dim < DIM)[None, :]
    tl.store(out + at, (total * scale).to(out.dtype.element_ty), mask=keep)


def _gradient(a, b, rows, columns, grad, lse_t, lse_s, valid, causal, scale):
    """Gradient of the student's ``a``; ``a`` and ``b`` are (teacher, student) pairs."""
    (a_t, a_s), (b_t, b_s) = a, b
    batch, a_heads, tokens, head_dim = a_s.shape
    half = a_s.dtype == torch.float16
    out = torch.empty(a_s.shape, dtype=torch.float32 if half else a_s.dtype, device=a_s.device)
    tile = backward_tile(a_s)
    tma = tma_fits(b_t, b_s)
    with on_device(a_s):
        _backward_kernel[(batch * a_heads * triton.cdiv(tokens, tile.rows),)](
            a_t,
            a_s,
            descriptor(b_t, tile.columns) if tma else b_t,
            descriptor(b_s, tile.columns) if tma else b_s,
            out,
            lse_t,
            lse_s,
            grad,
            *valid_operands(valid),
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
            HAS_VALID=valid is not None,
            TMA=tma,
            PRECISION=precision(a_s),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


def backward(grad, lse_t, lse_s, q_t, k_t, q_s, k_s, valid, causal, scale, needs):
    """Gradients of the student in its dtype; see ``autograd.Implementation``."""
    dtype = q_s.dtype
    grad = grad.contiguous()
    peak = None
    if dtype == torch.float16:
        peak = grad.abs().amax().clamp_min(1e-30) / _HALF_PEAK
        grad = grad / peak
    common = (grad, lse_t, lse_s, valid, causal, scale)
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
