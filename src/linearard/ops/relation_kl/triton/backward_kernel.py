"""Backward: the scores again, a tile at a time, and one product of their weights with the tokens.

One kernel serves the three gradients. Its program owns ROWS tokens of ``a`` and walks over the
tokens of ``b``; the weight of a pair is ``g (P_s - P_t)`` of the row that the pair belongs to:

    ROW   a are queries, b keys: the statistics of a's token     -> dq
    COL   a are keys, b queries: the statistics of b's token     -> dk, over the heads of a group
    both  a = b, a self-relation: S_ij = S_ji, so the tile below the diagonal gives the row part
          of a's tokens, and the tile above it their column part -> dx

No program writes what another one writes, so the result does not depend on their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from linearard.ops.relation_kl.triton.relations import pick, pick_swept, steps
from linearard.ops.relation_kl.triton.tiles import exponential, load_tokens, place


@triton.jit
def _load_stats(stats, grad, at, length, inside, MASKED: tl.constexpr):
    """Offsets of teacher and student, ratio of their sums, gradient; outside, weights become 0."""
    stats += at
    if MASKED:
        offset_t = tl.load(stats, mask=inside, other=float("-inf"))
        offset_s = tl.load(stats + length, mask=inside, other=float("-inf"))
        ratio = tl.load(stats + 2 * length, mask=inside, other=1.0)
        g = tl.load(grad + at, mask=inside, other=0.0)
    else:
        offset_t = tl.load(stats)
        offset_s = tl.load(stats + length)
        ratio = tl.load(stats + 2 * length)
        g = tl.load(grad + at)
    return offset_t, offset_s, ratio, g


@triton.jit
def _weight(raw_t, raw_s, c, offset_t, offset_s, ratio, g):
    """``g (P_s - P_t)``; exactly 0 where the models' scores are equal: then ``ratio`` is 1."""
    e_t, _ = exponential(raw_t, c, offset_t)
    e_s, _ = exponential(raw_s, c, offset_s)
    return (e_s - e_t * ratio) * g


@triton.jit
def _sweep(
    total,
    own,
    b_t,
    b_s,
    at_t,
    at_s,
    flags_base,
    stats,
    row_stats,
    seen,
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
    BAND: tl.constexpr,
    HAS_VALID: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add columns low ... high to ``total`` [ROWS, WIDTH].

    DIAGONAL: some pairs see one way; BAND: some pairs are outside window or document.
    """
    a_t, a_s = own
    stats_base, grad_base, length = stats
    rows, seen_from, seen_to = seen
    offset_t_row, offset_s_row, ratio_row, g_row = row_stats
    for start in range(low, high, COLUMNS):
        tile_t = load_tokens(b_t, at_t, start, tokens, DIM, WIDTH, COLUMNS, EDGE, TMA)
        tile_s = load_tokens(b_s, at_s, start, tokens, DIM, WIDTH, COLUMNS, EDGE, TMA)
        columns = start + tl.arange(0, COLUMNS)
        raw_t = tl.dot(a_t, tl.trans(tile_t), input_precision=PRECISION)  # [ROWS, COLUMNS]
        raw_s = tl.dot(a_s, tl.trans(tile_s), input_precision=PRECISION)
        if ROW:
            weight = _weight(
                raw_t, raw_s, c,
                offset_t_row[:, None], offset_s_row[:, None], ratio_row[:, None], g_row[:, None],
            )  # fmt: skip
            if DIAGONAL or EDGE or HAS_VALID:
                keep = (columns < tokens)[None, :]
                if HAS_VALID:
                    flags = tl.load(flags_base + columns, mask=columns < tokens, other=0)
                    keep = (flags != 0)[None, :]
                if DIAGONAL:
                    keep = keep & (columns[None, :] <= rows[:, None])
                weight = tl.where(keep, weight, 0.0)
        if COL:
            inside = columns < tokens
            offset_t, offset_s, ratio, g = _load_stats(
                stats_base, grad_base, columns, length, inside, EDGE
            )
            part = _weight(
                raw_t, raw_s, c, offset_t[None, :], offset_s[None, :], ratio[None, :], g[None, :]
            )
            if DIAGONAL:
                part = tl.where(columns[None, :] >= rows[:, None], part, 0.0)
            if ROW:
                weight += part
            else:
                weight = part
        if BAND:
            keep = columns[None, :] >= seen_from[:, None]
            keep = keep & (columns[None, :] < seen_to[:, None])
            weight = tl.where(keep, weight, 0.0)
        total = tl.dot(weight.to(tile_s.dtype), tile_s, total, input_precision=PRECISION)
    return total


# the heads' counts enter no address that their alignment would widen: not a kernel for each
@triton.jit(do_not_specialize_on_alignment=["starts", "a_heads", "b_heads", "together"])
def backward_kernel(
    a_t,
    a_s,
    b_t_0,
    b_s_0,
    b_t_1,
    b_s_1,
    b_t_2,
    b_s_2,
    out,
    stats,
    grad,
    flags,
    bounds,
    spans,
    a_t_strides,
    a_s_strides,
    b_t_strides,
    b_s_strides,
    tokens,
    starts,
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
    BANDED: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: the gradient of ROWS tokens of one head of ``a``.

    ``stats`` and ``grad`` hold the rows of all relations; where there are several, a is b.
    """
    blocks = tl.cdiv(tokens, ROWS)
    all_heads = tl.num_programs(0) // blocks
    place_of, block = place(blocks, all_heads, together)  # head of all relations' B * a_heads
    place_of = place_of.to(tl.int64)
    before = pick(starts, starts, place_of, 0, 1)  # heads of other relations
    heads_a = pick(a_heads, starts, place_of, 0, 1)
    heads_b = pick(b_heads, starts, place_of, 0, 1)
    length = all_heads.to(tl.int64) * tokens  # of one of the statistics
    if ROW:  # long rows first (with both parts all are equally long)
        block = blocks - 1 - block
    else:
        length *= heads_b // heads_a
    first = block * ROWS
    head = place_of - before  # head of B * a_heads
    b = head // heads_a
    h = head % heads_a
    rows = first + tl.arange(0, ROWS)
    inside = rows < tokens
    step_b, step_h, step_n = steps(a_t_strides, starts, place_of)
    at = (b, h, step_b, step_h, step_n)
    own_t = pick(a_t, starts, place_of, 0, 1)
    own_t = load_tokens(own_t, at, first, tokens, DIM, WIDTH, ROWS, True, False)
    step_b, step_h, step_n = steps(a_s_strides, starts, place_of)
    at = (b, h, step_b, step_h, step_n)
    own_s = pick(a_s, starts, place_of, 0, 1)
    own_s = load_tokens(own_s, at, first, tokens, DIM, WIDTH, ROWS, True, False)
    b_t_b, b_t_h, b_t_n = steps(b_t_strides, starts, place_of)
    b_s_b, b_s_h, b_s_n = steps(b_s_strides, starts, place_of)
    b_t = pick_swept(b_t_0, b_t_1, b_t_2, starts, place_of)
    b_s = pick_swept(b_s_0, b_s_1, b_s_2, starts, place_of)
    if ROW:
        at = place_of * tokens + rows
        row_stats = _load_stats(stats, grad, at, length, inside, True)
        repeats = 1
    else:
        row_stats = (0, 0, 0, 0)
        repeats = heads_b // heads_a

    low = 0
    high = tokens
    seen_from = 0
    seen_to = tokens
    if BANDED:  # token a and token b see each other only within the span of a, one way or both
        last = tl.minimum(first + ROWS, tokens) - 1
        low = tl.load(spans + first) // COLUMNS * COLUMNS
        high = tl.load(spans + tokens + last)
        seen_from = tl.load(spans + rows, mask=inside, other=0)
        seen_to = tl.load(spans + tokens + rows, mask=inside, other=0)
    if HAS_VALID:
        flags += b * tokens
        start = tl.load(bounds + 2 * b) // COLUMNS * COLUMNS
        end = tl.load(bounds + 2 * b + 1)
        low = tl.maximum(low, start)
        high = tl.where((first < end) & (first + ROWS > start), tl.minimum(high, end), 0)
    near = low  # tiles from here on, up to `far`, lie within the spans of all rows
    far = high
    if BANDED:
        near = tl.maximum(low, tl.cdiv(tl.load(spans + last), COLUMNS) * COLUMNS)
        far = tl.minimum(high, tl.load(spans + tokens + first) // COLUMNS * COLUMNS)
    diagonal = first // COLUMNS * COLUMNS  # the tiles that the diagonal crosses, to `beyond`
    beyond = tl.cdiv(first + ROWS, COLUMNS) * COLUMNS

    own = (own_t, own_s)
    seen = (rows, seen_from, seen_to)
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for repeat in range(0, repeats):
        b_head = h // (heads_a // heads_b) if ROW else h * repeats + repeat
        at_t = (b, b_head, b_t_b, b_t_h, b_t_n)
        at_s = (b, b_head, b_s_b, b_s_h, b_s_n)
        base = (before + b * heads_b + b_head) * tokens
        b_stats = (stats + base, grad + base, length)
        if CAUSAL:
            if ROW:
                if BANDED:
                    total = _sweep(
                        total, own, b_t, b_s, at_t, at_s, flags, b_stats, row_stats, seen,
                        low, tl.minimum(near, tl.minimum(diagonal, high)), tokens, c,
                        DIM, WIDTH, COLUMNS,
                        True, False, False, False, True, HAS_VALID, TMA, PRECISION,
                    )  # fmt: skip
                total = _sweep(
                    total, own, b_t, b_s, at_t, at_s, flags, b_stats, row_stats, seen,
                    near, tl.minimum(diagonal, high), tokens, c, DIM, WIDTH, COLUMNS,
                    True, False, False, False, False, HAS_VALID, TMA, PRECISION,
                )  # fmt: skip
            total = _sweep(
                total, own, b_t, b_s, at_t, at_s, flags, b_stats, row_stats, seen,
                tl.maximum(diagonal, low), tl.minimum(beyond, high), tokens, c,
                DIM, WIDTH, COLUMNS, ROW, COL, True, True, BANDED, HAS_VALID, TMA, PRECISION,
            )  # fmt: skip
            if COL:
                total = _sweep(
                    total, own, b_t, b_s, at_t, at_s, flags, b_stats, row_stats, seen,
                    tl.maximum(beyond, low), far, tokens, c, DIM, WIDTH, COLUMNS,
                    False, True, False, not EVEN, False, HAS_VALID, TMA, PRECISION,
                )  # fmt: skip
                if BANDED:
                    total = _sweep(
                        total, own, b_t, b_s, at_t, at_s, flags, b_stats, row_stats, seen,
                        tl.maximum(far, tl.maximum(beyond, low)), high, tokens, c,
                        DIM, WIDTH, COLUMNS,
                        False, True, False, True, True, HAS_VALID, TMA, PRECISION,
                    )  # fmt: skip
        else:
            total = _sweep(
                total, own, b_t, b_s, at_t, at_s, flags, b_stats, row_stats, seen,
                low, high, tokens, c, DIM, WIDTH, COLUMNS,
                ROW, COL, False, not EVEN, BANDED, HAS_VALID, TMA, PRECISION,
            )  # fmt: skip

    dim = tl.arange(0, WIDTH)
    at = (head * tokens + rows)[:, None] * DIM + dim[None, :]
    out = pick(out, starts, place_of, 0, 1)
    keep = inside[:, None] & (dim < DIM)[None, :]
    tl.store(out + at, (total * scale).to(out.dtype.element_ty), mask=keep)
