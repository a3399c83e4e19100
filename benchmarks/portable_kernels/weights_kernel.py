"""The weights of pairs, ``g (P_s - P_t)``, from scores computed again: stored for their products.

A panel holds the weights of some rows of some heads, [heads, rows, columns] in the operands' dtype,
in squares of BLOCK x BLOCK. Those that no row of a square sees are neither written nor read:
``products_kernel`` knows the same limits. In what is written, pairs that do not see each other are 0.

Of a self-relation, S_ij = S_ji, so the matrix M that the gradient is made of, dx = M x, is symmetric:

    M_ij = W_ij [i sees j] + W_ji [j sees i]

and only its squares on and below the diagonal are formed, each from scores computed once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from benchmarks.portable_kernels.tiles import load_rows, products_with
from linearard.ops.relation_kl.triton.relations import pick, steps
from linearard.ops.relation_kl.triton.tiles import exponential

#: Parameters that count blocks of a panel: no variant for each.
PANEL = ("panel_low", "panel_base", "panel_rows", "panel_width")


@triton.jit
def load_row(stats, grad, at, length, inside):
    """Offsets of teacher and student, ratio of their sums, gradient; outside, weights become 0."""
    offset_t = tl.load(stats + at, mask=inside, other=float("-inf"))
    offset_s = tl.load(stats + length + at, mask=inside, other=float("-inf"))
    ratio = tl.load(stats + 2 * length + at, mask=inside, other=1.0)
    g = tl.load(grad + at, mask=inside, other=0.0)
    return offset_t, offset_s, ratio, g


@triton.jit
def _weight(raw_t, raw_s, c, offset_t, offset_s, ratio, g):
    """``g (P_s - P_t)``; exactly 0 where the models' scores are equal: then ``ratio`` is 1."""
    e_t, _ = exponential(raw_t, c, offset_t)
    e_s, _ = exponential(raw_s, c, offset_s)
    return (e_s - e_t * ratio) * g


@triton.jit
def _sweep(
    own_t,
    own_s,
    k_t,
    k_s,
    at_t,
    at_s,
    row_stats,
    row_seen,
    stats,
    flags,
    store,
    low,
    high,
    tokens,
    c,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr,
    SELF: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BANDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write columns low ... high of ROWS rows; MASKED: some of their pairs do not see each other."""
    offset_t_row, offset_s_row, ratio_row, g_row = row_stats
    rows, row_valid, seen_from, seen_to = row_seen
    stats_base, grad_base, length = stats
    first, width = store
    for start in range(low, high, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        raw_t = products_with(
            own_t, k_t, at_t, start, tokens, DIM, WIDTH, TAIL, COLUMNS, MASKED, PRECISION
        )  # [ROWS, COLUMNS]
        raw_s = products_with(
            own_s, k_s, at_s, start, tokens, DIM, WIDTH, TAIL, COLUMNS, MASKED, PRECISION
        )
        weight = _weight(
            raw_t, raw_s, c,
            offset_t_row[:, None], offset_s_row[:, None], ratio_row[:, None], g_row[:, None],
        )  # fmt: skip
        if MASKED and CAUSAL:
            weight = tl.where(columns[None, :] <= rows[:, None], weight, 0.0)
        if SELF and (MASKED or not CAUSAL):
            offset_t, offset_s, ratio, g = load_row(
                stats_base, grad_base, columns, length, columns < tokens
            )
            part = _weight(
                raw_t, raw_s, c, offset_t[None, :], offset_s[None, :], ratio[None, :], g[None, :]
            )
            if CAUSAL:
                part = tl.where(columns[None, :] >= rows[:, None], part, 0.0)
            weight += part
        if MASKED:
            keep = (columns < tokens)[None, :] & (rows < tokens)[:, None]
            if HAS_VALID:
                valid = tl.load(flags + columns, mask=columns < tokens, other=0) != 0
                keep = valid[None, :] & row_valid[:, None]
            if BANDED:
                keep = keep & (columns[None, :] >= seen_from[:, None])
                keep = keep & (columns[None, :] < seen_to[:, None])
            weight = tl.where(keep, weight, 0.0)
        at = tl.arange(0, ROWS)[:, None] * width + columns[None, :]
        tl.store(first + at, weight.to(own_s[0].dtype))


# the heads' counts enter no address that their alignment would widen: not a kernel for each
@triton.jit(
    do_not_specialize=["all_heads", "chunks", "first_head", *PANEL],
    do_not_specialize_on_alignment=["starts", "heads", "kv_heads"],
)
def weights_kernel(
    q_t,
    q_s,
    k_t,
    k_s,
    stats,
    grad,
    flags,
    bounds,
    spans,
    panel,
    q_t_strides,
    q_s_strides,
    k_t_strides,
    k_s_strides,
    tokens,
    all_heads,
    starts,
    heads,
    kv_heads,
    first_head,
    panel_low,
    panel_base,
    panel_rows,
    panel_width,
    chunks,
    c,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr,
    SELF: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BANDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: ROWS rows of one head, CHUNK columns. The panel's numbers count blocks."""
    panel_low *= BLOCK
    panel_base *= BLOCK
    panel_rows *= BLOCK
    panel_width *= BLOCK
    pid = tl.program_id(0)
    chunk = pid % chunks
    pid = pid // chunks
    blocks = panel_rows // ROWS
    block = blocks - 1 - pid % blocks  # long rows first
    local = pid // blocks  # head of the panel
    first = panel_low + block * ROWS
    place_of = (first_head + local).to(tl.int64)  # head of all relations' B * H
    head = place_of - pick(starts, starts, place_of, 0, 1)  # head of B * H
    own_heads = pick(heads, starts, place_of, 0, 1)
    b = head // own_heads
    h = head % own_heads
    rows = first + tl.arange(0, ROWS)
    inside = rows < tokens

    # what is written, in squares: `low` ... `high`; of it all rows see `near` ... `far`
    square = first // BLOCK * BLOCK
    last_row = tl.minimum(first + ROWS, tokens) - 1
    low = panel_base
    near = panel_base
    if CAUSAL or SELF:
        high = square + BLOCK
        far = square
    else:
        high = tl.cdiv(tokens, BLOCK) * BLOCK
        far = tokens
    seen_from = 0
    seen_to = tokens
    row_valid = inside
    if BANDED:
        low = tl.maximum(low, tl.load(spans + square) // BLOCK * BLOCK)
        near = tl.load(spans + tl.maximum(last_row, 0))
        if not (CAUSAL or SELF):
            last = tl.minimum(square + BLOCK, tokens) - 1
            high = tl.cdiv(tl.load(spans + tokens + last), BLOCK) * BLOCK
            far = tl.load(spans + tokens + tl.minimum(first, tokens - 1))
        seen_from = tl.load(spans + rows, mask=inside, other=0)
        seen_to = tl.load(spans + tokens + rows, mask=inside, other=0)
    if HAS_VALID:
        flags += b * tokens
        start = tl.load(bounds + 3 * b)
        end = tl.load(bounds + 3 * b + 1)
        row_valid = tl.load(flags + rows, mask=inside, other=0) != 0
        low = tl.maximum(low, start // BLOCK * BLOCK)
        high = tl.minimum(high, tl.cdiv(end, BLOCK) * BLOCK)
        near = tl.maximum(near, start)
        far = tl.minimum(far, end)
        solid = tl.load(bounds + 3 * b + 2) != 0
        # a program's rows are all valid, or its tiles are masked: a row that is not has no weight
        far = tl.where(solid & (first >= start) & (first + ROWS <= end), far, 0)
        out = (square >= tl.cdiv(end, BLOCK) * BLOCK) | (square + BLOCK <= start)
        high = tl.where(out, 0, high)
    near = tl.cdiv(near, COLUMNS) * COLUMNS
    far = far // COLUMNS * COLUMNS
    begin = chunk * CHUNK + panel_base // CHUNK * CHUNK
    low = tl.maximum(low, begin)
    high = tl.minimum(high, begin + CHUNK)
    if low < high:
        near = tl.minimum(tl.maximum(near, low), high)
        far = tl.maximum(tl.minimum(far, high), near)
        step_b, step_h, step_n = steps(q_t_strides, starts, place_of)
        own = pick(q_t, starts, place_of, 0, 1)
        at = (b, h, step_b, step_h, step_n)
        own_t = load_rows(own, at, first, tokens, DIM, WIDTH, TAIL, ROWS)
        step_b, step_h, step_n = steps(q_s_strides, starts, place_of)
        own = pick(q_s, starts, place_of, 0, 1)
        at = (b, h, step_b, step_h, step_n)
        own_s = load_rows(own, at, first, tokens, DIM, WIDTH, TAIL, ROWS)
        kv_head = h // (own_heads // pick(kv_heads, starts, place_of, 0, 1))
        step_b, step_h, step_n = steps(k_t_strides, starts, place_of)
        at_t = (b, kv_head, step_b, step_h, step_n)
        step_b, step_h, step_n = steps(k_s_strides, starts, place_of)
        at_s = (b, kv_head, step_b, step_h, step_n)
        tiles_t = pick(k_t, starts, place_of, 0, 1)
        tiles_s = pick(k_s, starts, place_of, 0, 1)
        length = all_heads.to(tl.int64) * tokens  # of one of the statistics
        stats += place_of * tokens
        grad += place_of * tokens
        row_stats = load_row(stats, grad, rows, length, inside)
        row_seen = (rows, row_valid, seen_from, seen_to)
        of = (stats, grad, length)
        row = local.to(tl.int64) * panel_rows + first - panel_low
        store = (panel + row * panel_width - panel_base, panel_width)
        if BANDED or HAS_VALID:
            _sweep(
                own_t, own_s, tiles_t, tiles_s, at_t, at_s, row_stats, row_seen, of, flags, store,
                low, near, tokens, c, DIM, WIDTH, TAIL, ROWS, COLUMNS,
                CAUSAL, SELF, True, HAS_VALID, BANDED, PRECISION,
            )  # fmt: skip
        _sweep(
            own_t, own_s, tiles_t, tiles_s, at_t, at_s, row_stats, row_seen, of, flags, store,
            near, far, tokens, c, DIM, WIDTH, TAIL, ROWS, COLUMNS,
            CAUSAL, SELF, False, HAS_VALID, BANDED, PRECISION,
        )  # fmt: skip
        _sweep(
            own_t, own_s, tiles_t, tiles_s, at_t, at_s, row_stats, row_seen, of, flags, store,
            far, high, tokens, c, DIM, WIDTH, TAIL, ROWS, COLUMNS,
            CAUSAL, SELF, True, HAS_VALID, BANDED, PRECISION,
        )  # fmt: skip
