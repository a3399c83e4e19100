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

from benchmarks.portable_kernels.launch import launch
from benchmarks.portable_kernels.tiles import (
    load_rows,
    products_with,
    seen_operands,
    tile_of,
    widths,
)
from linearard.ops.relation_kl.triton.relations import (
    first_heads,
    pick,
    steps,
    strides,
)
from linearard.ops.relation_kl.triton.tiles import (
    LOG2_E,
    exponential,
    heads_together,
    on_device,
    place,
    precision,
    row_major,
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
    TAIL: tl.constexpr,
    COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr,
    EDGE: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BANDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Columns low ... high; with EDGE some of them are hidden from some rows."""
    max_t, sum_t, max_s, sum_s, cross = state
    for start in range(low, high, COLUMNS):
        raw_t = products_with(
            q_t, k_t, at_t, start, tokens, DIM, WIDTH, TAIL, COLUMNS, EDGE, PRECISION
        )  # [ROWS, COLUMNS]
        raw_s = products_with(
            q_s, k_s, at_s, start, tokens, DIM, WIDTH, TAIL, COLUMNS, EDGE, PRECISION
        )
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


@triton.jit
def _sweep_from_offsets(
    q_t,
    q_s,
    k_t,
    k_s,
    at_t,
    at_s,
    state,
    low,
    high,
    tokens,
    c,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TAIL: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The same of columns that all rows see, with the offsets as they are: no maxima are formed.

    Sums say afterwards whether an offset should have moved.
    """
    max_t, sum_t, max_s, sum_s, cross = state
    for start in range(low, high, COLUMNS):
        raw_t = products_with(
            q_t, k_t, at_t, start, tokens, DIM, WIDTH, TAIL, COLUMNS, False, PRECISION
        )  # [ROWS, COLUMNS]
        raw_s = products_with(
            q_s, k_s, at_s, start, tokens, DIM, WIDTH, TAIL, COLUMNS, False, PRECISION
        )
        p_t, exponent_t = exponential(raw_t, c, -max_t[:, None])
        p_s, exponent_s = exponential(raw_s, c, -max_s[:, None])
        cross += tl.sum(p_t * (exponent_t - exponent_s), 1)
        sum_t += tl.sum(p_t, 1)
        sum_s += tl.sum(p_s, 1)
    return max_t, sum_t, max_s, sum_s, cross


# the heads' counts enter no address that their alignment would widen: not a kernel for each
@triton.jit(
    do_not_specialize=["together"],
    do_not_specialize_on_alignment=["starts", "heads", "kv_heads"],
)
def _forward_kernel(
    q_t,
    q_s,
    k_t,
    k_s,
    flags,
    bounds,
    spans,
    kl,
    stats,
    q_t_strides,
    q_s_strides,
    k_t_strides,
    k_s_strides,
    tokens,
    starts,
    heads,
    kv_heads,
    together,
    c,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BANDED: tl.constexpr,
    OFFSETS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: ROWS rows of one head. Long rows first, so that the last programs are short."""
    blocks = tl.cdiv(tokens, ROWS)
    all_heads = tl.num_programs(0) // blocks
    place_of, block = place(blocks, all_heads, together)  # head of all relations' B * H
    first = (blocks - 1 - block) * ROWS
    place_of = place_of.to(tl.int64)
    head = place_of - pick(starts, starts, place_of, 0, 1)  # head of B * H
    own_heads = pick(heads, starts, place_of, 0, 1)
    b = head // own_heads
    h = head % own_heads
    rows = first + tl.arange(0, ROWS)
    step_b, step_h, step_n = steps(q_t_strides, starts, place_of)
    at = (b, h, step_b, step_h, step_n)
    own = pick(q_t, starts, place_of, 0, 1)
    own_t = load_rows(own, at, first, tokens, DIM, WIDTH, TAIL, ROWS)
    step_b, step_h, step_n = steps(q_s_strides, starts, place_of)
    at = (b, h, step_b, step_h, step_n)
    own = pick(q_s, starts, place_of, 0, 1)
    own_s = load_rows(own, at, first, tokens, DIM, WIDTH, TAIL, ROWS)
    kv_head = h // (own_heads // pick(kv_heads, starts, place_of, 0, 1))
    step_b, step_h, step_n = steps(k_t_strides, starts, place_of)
    at_t = (b, kv_head, step_b, step_h, step_n)
    step_b, step_h, step_n = steps(k_s_strides, starts, place_of)
    at_s = (b, kv_head, step_b, step_h, step_n)
    k_t = pick(k_t, starts, place_of, 0, 1)
    k_s = pick(k_s, starts, place_of, 0, 1)

    # columns `low` ... `high`; of them all rows see `near` ... `far`
    low = 0
    high = tokens
    near = 0
    far = tokens
    if CAUSAL:
        high = tl.minimum(first + ROWS, tokens)
        far = first
    inside = rows < tokens
    seen_from = 0
    seen_to = tokens
    if BANDED:
        last = tl.minimum(first + ROWS, tokens) - 1
        low = tl.load(spans + first) // COLUMNS * COLUMNS
        near = tl.load(spans + last)
        seen_from = tl.load(spans + rows, mask=inside, other=0)
        if not CAUSAL:
            far = tl.load(spans + tokens + first)
            high = tl.load(spans + tokens + last)
            seen_to = tl.load(spans + tokens + rows, mask=inside, other=0)
    if HAS_VALID:
        flags += b * tokens
        start = tl.load(bounds + 3 * b)
        end = tl.load(bounds + 3 * b + 1)
        low = tl.maximum(low, start // COLUMNS * COLUMNS)
        high = tl.where(first < end, tl.minimum(high, end), 0)
        near = tl.maximum(near, start)
        far = tl.where(tl.load(bounds + 3 * b + 2) != 0, tl.minimum(far, end), 0)
    near = tl.minimum(tl.cdiv(near, COLUMNS) * COLUMNS, tl.cdiv(high, COLUMNS) * COLUMNS)
    far = tl.maximum(far // COLUMNS * COLUMNS, near)

    # `hidden` in units of the exponent is -1e30, far below `least`: a tile of which a row sees
    # nothing adds exactly 0 to it, and nothing infinite comes near a difference
    hidden = -1e30 / tl.maximum(c, 1e-6)
    least = tl.full([ROWS], -1e20, tl.float32)
    zero = tl.zeros([ROWS], tl.float32)
    state = (least, zero, least, zero, zero)
    if BANDED or HAS_VALID:
        state = _sweep(
            own_t, own_s, k_t, k_s, at_t, at_s, flags, state, rows, seen_from, seen_to,
            low, near, tokens, c, hidden,
            DIM, WIDTH, TAIL, COLUMNS, CAUSAL, True, HAS_VALID, BANDED, PRECISION,
        )  # fmt: skip
    state = _sweep(
        own_t, own_s, k_t, k_s, at_t, at_s, flags, state, rows, seen_from, seen_to,
        far, high, tokens, c, hidden,
        DIM, WIDTH, TAIL, COLUMNS, CAUSAL, True, HAS_VALID, BANDED, PRECISION,
    )  # fmt: skip
    # a row's largest scores are most often those of its own token, which has been seen, and of the
    # first ones: their maxima do for the rest, unless sums come out too large
    then = tl.minimum(near + COLUMNS, far) if OFFSETS else far
    state = _sweep(
        own_t, own_s, k_t, k_s, at_t, at_s, flags, state, rows, seen_from, seen_to,
        near, then, tokens, c, hidden,
        DIM, WIDTH, TAIL, COLUMNS, CAUSAL, False, HAS_VALID, BANDED, PRECISION,
    )  # fmt: skip
    max_t, sum_t, max_s, sum_s, cross = state
    if OFFSETS:
        max_t, sum_t, max_s, sum_s, cross = _sweep_from_offsets(
            own_t, own_s, k_t, k_s, at_t, at_s, state, then, far, tokens, c,
            DIM, WIDTH, TAIL, COLUMNS, PRECISION,
        )  # fmt: skip
        most = tl.max(tl.maximum(sum_t, sum_s), 0)
        if most > tl.maximum(4.0 * tokens, 65536.0):
            max_t, sum_t, max_s, sum_s, cross = _sweep(
                own_t, own_s, k_t, k_s, at_t, at_s, flags, state, rows, seen_from, seen_to,
                then, far, tokens, c, hidden,
                DIM, WIDTH, TAIL, COLUMNS, CAUSAL, False, HAS_VALID, BANDED, PRECISION,
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
    kl = pick(kl, starts, place_of, 0, 1)
    tl.store(
        kl + head * tokens + rows, tl.where(counts, bits * 0.6931471805599453, 0.0), mask=inside
    )
    length = all_heads.to(tl.int64) * tokens
    stats += place_of * tokens + rows
    # backward: exp2(-inf) = 0 in rows that do not count
    tl.store(stats, tl.where(counts, -max_t, float("-inf")), mask=inside)
    tl.store(stats + length, tl.where(counts, -max_s, float("-inf")), mask=inside)
    tl.store(stats + 2 * length, tl.div_rn(sum_s, sum_t), mask=inside)  # equal: exactly 1
    tl.store(stats + 3 * length, 1.0 / sum_s, mask=inside)


def forward(relations, visible, scale):
    """KL of each relation [B, H, N] and the statistics [4, sum of B * H, N], float32.

    See ``autograd.Implementation``.
    """
    q_t, q_s = (row_major(*(r[i] for r in relations)) for i in (0, 2))
    k_t, k_s = q_t, q_s
    if relations[0].k_s is not None:
        k_t, k_s = (row_major(*(r[i] for r in relations)) for i in (1, 3))
    like = q_s[0]
    batch, _, tokens, head_dim = like.shape
    all_heads = batch * sum(x.shape[1] for x in q_s)
    rows = [torch.empty(x.shape[:3], dtype=torch.float32, device=x.device) for x in q_s]
    stats = rows[0].new_empty(4, all_heads, tokens)
    if tokens == 1:  # each row sees itself alone; backward says why no kernel is made of it
        return [x.zero_() for x in rows], [stats]
    tile, (width, tail) = tile_of("forward", like), widths(head_dim)
    arguments = (
        *(tuple(x) for x in (q_t, q_s, k_t, k_s)),
        *seen_operands(visible, tokens, like.device),
        tuple(rows),
        stats,
        *(strides(x) for x in (q_t, q_s, k_t, k_s)),
        tokens,
        first_heads(q_s),
        tuple(x.shape[1] for x in q_s),
        tuple(x.shape[1] for x in k_s),
        heads_together(k_s[0]),
        scale * LOG2_E,
    )
    constants = {
        "DIM": head_dim,
        "WIDTH": width,
        "TAIL": tail,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "CAUSAL": visible.causal,
        "HAS_VALID": visible.valid is not None,
        "BANDED": visible.banded,
        # float32 would show what offsets below the maximum round
        "OFFSETS": visible.causal and like.dtype != torch.float32,
        "PRECISION": precision(like),
    }
    with on_device(like):
        programs = all_heads * -(-tokens // tile.rows)
        launch(_forward_kernel, programs, arguments, constants, tile)
    return rows, [stats]
