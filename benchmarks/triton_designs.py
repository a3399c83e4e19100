"""Other designs of the portable backward: causal self-relations of whole tiles, nothing else.

weights    scores, weights W = g (P_s - P_t) of a panel of rows; with ROW the row part W X of the gradient,
           with ADD the column part too, by adds to memory (1 in any order, 2 in order), else W is stored
columns    column parts from stored weights: out[j] = (add[j] + sum_i W_ij x_i) * scale; with BOTH the row
           parts as well
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _weight(raw_t, raw_s, c, offset_t, offset_s, ratio, g):
    e_t = tl.exp2(tl.fma(raw_t, c, offset_t))
    e_s = tl.exp2(tl.fma(raw_s, c, offset_s))
    return (e_s - e_t * ratio) * g


@triton.jit
def _sweep(
    total, x_t, x_s, own_t, own_s, row_stats, rows, low, high, c, store, width,
    turns, sums, turn, scale,
    DIM: tl.constexpr, COLUMNS: tl.constexpr, DIAGONAL: tl.constexpr, ROW: tl.constexpr,
    ADD: tl.constexpr, STORE: tl.constexpr, BOTH: tl.constexpr, stats, length, ROWS: tl.constexpr,
):  # fmt: skip
    offset_t, offset_s, ratio, g = row_stats
    dims = tl.arange(0, DIM)
    for start in range(low, high, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        at = columns[:, None] * DIM + dims[None, :]
        tile_t = tl.load(x_t + at)
        tile_s = tl.load(x_s + at)
        raw_t = tl.dot(own_t, tl.trans(tile_t))
        raw_s = tl.dot(own_s, tl.trans(tile_s))
        weight = _weight(
            raw_t, raw_s, c, offset_t[:, None], offset_s[:, None], ratio[:, None], g[:, None]
        )
        if DIAGONAL:
            weight = tl.where(columns[None, :] <= rows[:, None], weight, 0.0)
            if BOTH:
                c_t = tl.load(stats + columns)
                c_s = tl.load(stats + length + columns)
                c_r = tl.load(stats + 2 * length + columns)
                c_g = tl.load(stats + 3 * length + columns)
                part = _weight(
                    raw_t, raw_s, c, c_t[None, :], c_s[None, :], c_r[None, :], c_g[None, :]
                )
                weight += tl.where(columns[None, :] >= rows[:, None], part, 0.0)
        half = weight.to(tile_s.dtype)
        if STORE:
            tl.store(store + width * (rows[:, None]) + columns[None, :], half)
        if ROW:
            total = tl.dot(half, tile_s, total)
        if ADD:
            part = tl.dot(tl.trans(half), own_s)
            if ADD == 2:
                place = turns + start // COLUMNS
                while tl.atomic_add(place, 0, sem="acquire") != turn - start // ROWS:
                    pass
                tl.atomic_add(sums + at, part, sem="relaxed")
                tl.debug_barrier()
                tl.atomic_add(place, 1, sem="release")
            else:
                tl.atomic_add(sums + at, part, sem="relaxed")
    return total


@triton.jit(do_not_specialize=["together", "panel_low"])
def weights(
    x_t, x_s, stats, store, rows_out, turns, sums, tokens, panel_low, panel_high, together, c, scale,
    DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROW: tl.constexpr,
    ADD: tl.constexpr, STORE: tl.constexpr, BOTH: tl.constexpr,
):  # fmt: skip
    """``stats`` [4, heads, tokens]: offsets of both, ratio, gradient over the student's sum."""
    blocks = (panel_high - panel_low) // ROWS
    heads = tl.num_programs(0) // blocks
    pid = tl.program_id(0)
    first_head = pid // (blocks * together) * together
    within = pid - first_head * blocks
    size = tl.minimum(heads - first_head, together)
    head = (first_head + within % size).to(tl.int64)
    block = within // size
    if ADD != 2:
        block = blocks - 1 - block
    first = panel_low + block * ROWS
    length = heads.to(tl.int64) * tokens
    x_t += head * tokens * DIM
    x_s += head * tokens * DIM
    rows = first + tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    at = rows[:, None] * DIM + dims[None, :]
    own_t = tl.load(x_t + at)
    own_s = tl.load(x_s + at)
    stats += head * tokens
    row_stats = (
        tl.load(stats + rows), tl.load(stats + length + rows),
        tl.load(stats + 2 * length + rows), tl.load(stats + 3 * length + rows),
    )  # fmt: skip
    width = tokens
    store += (head * (panel_high - panel_low) - panel_low) * width
    turns += head * (tokens // COLUMNS)
    sums += head * tokens * DIM
    turn = first // ROWS
    total = tl.zeros([ROWS, DIM], tl.float32)
    diagonal = first // COLUMNS * COLUMNS
    high = first + ROWS
    if BOTH:  # the square of 128 on the diagonal whole
        high = (first // 128 + 1) * 128
    total = _sweep(
        total, x_t, x_s, own_t, own_s, row_stats, rows, 0, diagonal, c, store, width,
        turns, sums, turn, scale, DIM, COLUMNS, False, ROW, ADD, STORE, BOTH, stats, length, ROWS,
    )  # fmt: skip
    total = _sweep(
        total, x_t, x_s, own_t, own_s, row_stats, rows, diagonal, high, c, store, width,
        turns, sums, turn, scale, DIM, COLUMNS, True, ROW, ADD, STORE, BOTH, stats, length, ROWS,
    )  # fmt: skip
    if ROW:
        tl.store(rows_out + head * tokens * DIM + at, total)


@triton.jit(do_not_specialize=["together", "panel_low"])
def columns(
    x_s, store, add, out, tokens, panel_low, panel_high, together, scale,
    DIM: tl.constexpr, PART: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, BOTH: tl.constexpr,
    ADD: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """``out`` [heads, tokens, DIM], PART of DIM at a time; ``add`` float32 likewise."""
    blocks = panel_high // ROWS
    parts = DIM // PART
    heads = tl.num_programs(0) // (blocks * parts)
    pid = tl.program_id(0)
    part = pid % parts
    pid = pid // parts
    first_head = pid // (blocks * together) * together
    within = pid - first_head * blocks
    size = tl.minimum(heads - first_head, together)
    head = (first_head + within % size).to(tl.int64)
    block = within // size
    first = block * ROWS
    own = first + tl.arange(0, ROWS)
    dims = part * PART + tl.arange(0, PART)
    x_s += head * tokens * DIM
    width = tokens
    store += (head * (panel_high - panel_low) - panel_low) * width
    total = tl.zeros([ROWS, PART], tl.float32)
    steps = tl.arange(0, STEP)
    if BOTH:
        if first >= panel_low:
            for start in range(0, first + ROWS, STEP):
                w = tl.load(store + own[:, None] * width + (start + steps)[None, :])
                x = tl.load(x_s + (start + steps)[:, None] * DIM + dims[None, :])
                total = tl.dot(w, x, total)
        begin = tl.maximum(first + ROWS, panel_low)
    else:
        begin = tl.maximum(first, panel_low)
    for start in range(begin, panel_high, STEP):
        w = tl.load(store + (start + steps)[:, None] * width + own[None, :])
        x = tl.load(x_s + (start + steps)[:, None] * DIM + dims[None, :])
        total = tl.dot(tl.trans(w), x, total)
    at = head * tokens * DIM + own[:, None] * DIM + dims[None, :]
    if ADD:
        total += tl.load(add + at)
    if LAST:
        tl.store(out + at, (total * scale).to(out.dtype.element_ty))
    else:
        tl.store(add + at, total)
