"""Forward: one sweep over the columns, an online softmax of both models at once.

Scores are kept as raw products; ``c = scale * log2(e)`` enters with the exponent, so that a
probability costs one multiply-add and one exp2. What backward needs of a row leaves as four numbers:
the offsets of both models' exponents (minus their largest scores in base 2, rounded), the student's
sum over the teacher's, and one over the student's sum. Sums and exponentials that share an offset
share its rounding; a logsumexp would be rounded again, for all probabilities of a row together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from linearard.ops.relation_kl.triton.tiles import (
    LOG2_E,
    descriptor,
    exponential,
    forward_tile,
    heads_together,
    load_tokens,
    on_device,
    padded,
    place,
    precision,
    row_major,
    seen_operands,
    tma_fits,
)


@triton.jit
def _sweep(
    q_t,
    q_s,
    k_t,
    k_s,
    at_t,
    at_s,
    flags_base,
    state,
    rows,
    seen_from,
    seen_to,
    low,
    high,
    tokens,
    c,
    hidden,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr,
    EDGE: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BANDED: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Columns low ... high; with EDGE some of them are hidden from some rows."""
    max_t, sum_t, max_s, sum_s, cross = state
    for start in range(low, high, COLUMNS):
        tile_t = load_tokens(k_t, at_t, start, tokens, DIM, WIDTH, COLUMNS, EDGE, TMA)
        tile_s = load_tokens(k_s, at_s, start, tokens, DIM, WIDTH, COLUMNS, EDGE, TMA)
        raw_t = tl.dot(q_t, tl.trans(tile_t), input_precision=PRECISION)  # [ROWS, COLUMNS]
        raw_s = tl.dot(q_s, tl.trans(tile_s), input_precision=PRECISION)
        if EDGE:
            columns = start + tl.arange(0, COLUMNS)
            seen = (columns < tokens)[None, :]
            if HAS_VALID:
                flags = tl.load(flags_base + columns, mask=columns < tokens, other=0)
                seen = (flags != 0)[None, :]
            if CAUSAL:
                seen = seen & (columns[None, :] <= rows[:, None])
            if BANDED:
                seen = seen & (columns[None, :] >= seen_from[:, None])
                if not CAUSAL:
                    seen = seen & (columns[None, :] < seen_to[:, None])
            raw_t = tl.where(seen, raw_t, hidden)
            raw_s = tl.where(seen, raw_s, hidden)
        new_t = tl.maximum(max_t, tl.max(raw_t, 1) * c)
        new_s = tl.maximum(max_s, tl.max(raw_s, 1) * c)
        p_t, exponent_t = exponential(raw_t, c, -new_t[:, None])
        p_s, exponent_s = exponential(raw_s, c, -new_s[:, None])
        shrink_t = tl.exp2(max_t - new_t)
        # the gap is that of shifted scores: nothing large is left to cancel at the end
        moved = (new_s - max_s) - (new_t - max_t)
        cross = (cross + sum_t * moved) * shrink_t + tl.sum(p_t * (exponent_t - exponent_s), 1)
        sum_t = sum_t * shrink_t + tl.sum(p_t, 1)
        sum_s = sum_s * tl.exp2(max_s - new_s) + tl.sum(p_s, 1)
        max_t = new_t
        max_s = new_s
    return max_t, sum_t, max_s, sum_s, cross


# the heads' counts enter no address that their alignment would widen: not a kernel for each
@triton.jit(do_not_specialize_on_alignment=["heads", "group", "together"])
def _forward_kernel(
    q_t,
    k_t,
    q_s,
    k_s,
    flags,
    bounds,
    spans,
    kl,
    stats,
    q_t_b,
    q_t_h,
    q_t_n,
    k_t_b,
    k_t_h,
    k_t_n,
    q_s_b,
    q_s_h,
    q_s_n,
    k_s_b,
    k_s_h,
    k_s_n,
    tokens,
    heads,
    group,
    together,
    c,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BANDED: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: ROWS rows of one head. Long rows first, so that the last programs are short."""
    blocks = tl.cdiv(tokens, ROWS)
    all_heads = tl.num_programs(0) // blocks
    head, block = place(blocks, all_heads, together)  # head of B * H
    first = (blocks - 1 - block) * ROWS
    head = head.to(tl.int64)
    b = head // heads
    h = head % heads
    rows = first + tl.arange(0, ROWS)
    at = (b, h, q_t_b, q_t_h, q_t_n)
    tile_t = load_tokens(q_t, at, first, tokens, DIM, WIDTH, ROWS, True, False)
    at = (b, h, q_s_b, q_s_h, q_s_n)
    tile_s = load_tokens(q_s, at, first, tokens, DIM, WIDTH, ROWS, True, False)
    at_t = (b, h // group, k_t_b, k_t_h, k_t_n)
    at_s = (b, h // group, k_s_b, k_s_h, k_s_n)

    low = 0
    high = tokens
    if CAUSAL:
        high = tl.minimum(first + ROWS, tokens)
        inner = first // COLUMNS * COLUMNS
    else:
        inner = tokens // COLUMNS * COLUMNS
    inside = rows < tokens
    seen_from = 0
    seen_to = tokens
    if BANDED:
        last = tl.minimum(first + ROWS, tokens) - 1
        low = tl.load(spans + first) // COLUMNS * COLUMNS
        whole = tl.cdiv(tl.load(spans + last), COLUMNS) * COLUMNS  # all rows see from here on
        seen_from = tl.load(spans + rows, mask=inside, other=0)
        if not CAUSAL:
            inner = tl.load(spans + tokens + first) // COLUMNS * COLUMNS
            high = tl.load(spans + tokens + last)
            seen_to = tl.load(spans + tokens + rows, mask=inside, other=0)
    if HAS_VALID:
        flags += b * tokens
        low = tl.maximum(low, tl.load(bounds + 2 * b) // COLUMNS * COLUMNS)
        end = tl.load(bounds + 2 * b + 1)
        high = tl.where(first < end, tl.minimum(high, end), 0)
        inner = low

    # `hidden` in units of the exponent is -1e30, far below `least`: a tile of which a row sees
    # nothing adds exactly 0 to it, and nothing infinite comes near a difference
    hidden = -1e30 / tl.maximum(c, 1e-6)
    least = tl.full([ROWS], -1e20, tl.float32)
    zero = tl.zeros([ROWS], tl.float32)
    state = (least, zero, least, zero, zero)
    if not HAS_VALID:
        if BANDED:
            state = _sweep(
                tile_t, tile_s, k_t, k_s, at_t, at_s, flags, state, rows, seen_from, seen_to,
                low, tl.minimum(whole, inner), tokens, c, hidden,
                DIM, WIDTH, COLUMNS, CAUSAL, True, HAS_VALID, BANDED, TMA, PRECISION,
            )  # fmt: skip
            low = whole
        state = _sweep(
            tile_t, tile_s, k_t, k_s, at_t, at_s, flags, state, rows, seen_from, seen_to,
            low, inner, tokens, c, hidden,
            DIM, WIDTH, COLUMNS, CAUSAL, False, HAS_VALID, BANDED, TMA, PRECISION,
        )  # fmt: skip
    max_t, sum_t, max_s, sum_s, cross = _sweep(
        tile_t, tile_s, k_t, k_s, at_t, at_s, flags, state, rows, seen_from, seen_to,
        inner, high, tokens, c, hidden,
        DIM, WIDTH, COLUMNS, CAUSAL, True, HAS_VALID, BANDED, TMA, PRECISION,
    )  # fmt: skip

    # a row that sees one column is 0, and so is its gradient: exactly, so not left to rounding
    if HAS_VALID:
        counts = tl.load(flags + rows, mask=inside, other=0) == 2
    elif CAUSAL:
        counts = inside & (rows > seen_from)
    elif BANDED:
        counts = inside & (seen_to - seen_from > 1)
    else:
        counts = inside & (rows < (tokens > 1) * tokens)
    sum_t = tl.where(counts, sum_t, 1.0)
    sum_s = tl.where(counts, sum_s, 1.0)
    bits = cross / sum_t - tl.log2(tl.div_rn(sum_t, sum_s))  # equal sums: exactly 0
    at = head * tokens + rows
    tl.store(kl + at, tl.where(counts, bits * 0.6931471805599453, 0.0), mask=inside)
    length = all_heads.to(tl.int64) * tokens
    stats += at
    # backward: exp2(-inf) = 0 in rows that do not count
    tl.store(stats, tl.where(counts, -max_t, float("-inf")), mask=inside)
    tl.store(stats + length, tl.where(counts, -max_s, float("-inf")), mask=inside)
    tl.store(stats + 2 * length, tl.div_rn(sum_s, sum_t), mask=inside)  # equal: exactly 1
    tl.store(stats + 3 * length, 1.0 / sum_s, mask=inside)


def forward(q_t, k_t, q_s, k_s, visible, scale):
    """KL [B, H, N] and statistics [4, B, H, N], float32; see ``autograd.Implementation``."""
    q_t, q_s = row_major(q_t, q_s)
    k_t, k_s = (q_t, q_s) if k_s is None else row_major(k_t, k_s)
    batch, heads, tokens, head_dim = q_s.shape
    kl = torch.empty(batch, heads, tokens, dtype=torch.float32, device=q_s.device)
    stats = kl.new_empty(4, *kl.shape)
    if tokens == 1:  # each row sees itself alone; backward says why no kernel is made of it
        return kl.zero_(), stats
    tile = forward_tile(q_s)
    tma = tma_fits(k_t, k_s)
    with on_device(q_s):
        _forward_kernel[(batch * heads * triton.cdiv(tokens, tile.rows),)](
            q_t,
            descriptor(k_t, tile.columns) if tma else k_t,
            q_s,
            descriptor(k_s, tile.columns) if tma else k_s,
            *seen_operands(visible, tokens, q_s.device),
            kl,
            stats,
            *q_t.stride()[:3],
            *k_t.stride()[:3],
            *q_s.stride()[:3],
            *k_s.stride()[:3],
            tokens,
            heads,
            heads // k_s.shape[1],
            heads_together(k_s),
            scale * LOG2_E,
            DIM=head_dim,
            WIDTH=padded(head_dim),
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            CAUSAL=visible.causal,
            HAS_VALID=visible.valid is not None,
            BANDED=visible.banded,
            TMA=tma,
            PRECISION=precision(q_s),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return kl, stats
