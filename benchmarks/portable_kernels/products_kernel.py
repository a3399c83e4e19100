"""Gradients from stored weights: products of a panel, and of its transpose, with the tokens.

    ROW   the gradient of row tokens: sum over columns, W x           -> dq
    COL   the gradient of column tokens: sum over rows, W^T x         -> dk, over the heads of a group
    both  a self-relation, whose panels hold M on and below the diagonal -> dx

Where a call has several panels, the sums of all but the last are float32 in memory; launches follow
each other and no two programs of one write the same numbers, so the result does not depend on order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from benchmarks.portable_kernels.tiles import load_tokens
from benchmarks.portable_kernels.weights_kernel import PANEL
from linearard.ops.relation_kl.triton.relations import pick, steps


@triton.jit(
    do_not_specialize=["first_head", *PANEL],
    do_not_specialize_on_alignment=["starts", "heads", "x_heads", "share"],
)
def products_kernel(
    x,
    panel,
    sums,
    out,
    bounds,
    spans,
    x_strides,
    tokens,
    starts,
    heads,
    x_heads,
    share,
    first_head,
    panel_low,
    panel_base,
    panel_rows,
    panel_width,
    scale,
    DIM: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr,
    ROW: tl.constexpr,
    COL: tl.constexpr,
    SUMS: tl.constexpr,
    EVEN: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BANDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: ROWS tokens of one head of ``out``, PART of the numbers of each.

    ``heads``: of ``out``, a relation; ``x_heads``: of ``x``; ``share``: query heads of a key's. The
    panel's numbers count blocks, so that all they address is aligned.
    """
    panel_low *= BLOCK
    panel_base *= BLOCK
    panel_rows *= BLOCK
    panel_width *= BLOCK
    TRIANGLE: tl.constexpr = CAUSAL or (ROW and COL)
    pid = tl.program_id(0)
    part = pid % PARTS
    pid = pid // PARTS
    panel_high = panel_low + panel_rows
    begin = panel_low if not COL else panel_base  # of the tokens that have a part in this panel
    end = panel_high if not COL or TRIANGLE else panel_base + panel_width
    blocks = (end - begin) // ROWS
    first = begin + pid % blocks * ROWS
    local = pid // blocks  # head of the panel, or group of heads
    place_of = (first_head + local).to(tl.int64)
    head = place_of - pick(starts, starts, place_of, 0, 1)  # head of B * H
    own_heads = pick(heads, starts, place_of, 0, 1)
    b = head // own_heads
    h = head % own_heads
    own = first + tl.arange(0, ROWS)
    square = first // BLOCK * BLOCK
    last = tl.minimum(square + BLOCK, tokens) - 1

    # what weights_kernel wrote of these rows: `low` ... `high`; of these columns: `top` ... `bottom`
    low = panel_base
    high = square + BLOCK if TRIANGLE else tl.cdiv(tokens, BLOCK) * BLOCK
    top = panel_low
    if TRIANGLE:
        top = tl.maximum(top, square + BLOCK if ROW and COL else square)
    bottom = panel_high
    if BANDED:
        low = tl.maximum(low, tl.load(spans + square) // BLOCK * BLOCK)
        seen_to = tl.cdiv(tl.load(spans + tokens + last), BLOCK) * BLOCK
        bottom = tl.minimum(bottom, seen_to)
        if not TRIANGLE:
            high = tl.minimum(high, seen_to)
            top = tl.maximum(top, tl.load(spans + square) // BLOCK * BLOCK)
    if HAS_VALID:
        start = tl.load(bounds + 3 * b)
        stop = tl.cdiv(tl.load(bounds + 3 * b + 1), BLOCK) * BLOCK
        low = tl.maximum(low, start // BLOCK * BLOCK)
        top = tl.maximum(top, start // BLOCK * BLOCK)
        high = tl.minimum(high, stop)
        bottom = tl.minimum(bottom, stop)
        gone = (square >= stop) | (square + BLOCK <= start)
        high = tl.where(gone, 0, high)
        bottom = tl.where(gone, 0, bottom)

    step_b, step_h, step_n = steps(x_strides, starts, place_of)
    base = pick(x, starts, place_of, 0, 1)
    heads_of_x = pick(x_heads, starts, place_of, 0, 1)
    along = tl.arange(0, STEP)
    panel -= panel_base
    total = tl.zeros([ROWS, PART], tl.float32)
    if ROW:
        x_head = h // (own_heads // heads_of_x)
        at = (b, x_head, step_b, step_h, step_n)
        row = local.to(tl.int64) * panel_rows + first - panel_low
        within = tl.arange(0, ROWS)[:, None] * panel_width + along[None, :]
        for begun in range(low, tl.where(first >= panel_low, high, 0), STEP):
            weight = tl.load(panel + row * panel_width + begun + within)
            tile = load_tokens(
                base, at, begun, tokens, DIM, PART, STEP, not EVEN, DIM % PART != 0, part * PART
            )
            total = tl.dot(weight, tile, total, input_precision=PRECISION)
    if COL:
        within = along[:, None] * panel_width + tl.arange(0, ROWS)[None, :]
        for repeat in range(0, share):
            x_head = h * share + repeat
            at = (b, x_head, step_b, step_h, step_n)
            row = (local * share + repeat).to(tl.int64) * panel_rows - panel_low
            for begun in range(top, bottom, STEP):
                weight = tl.load(panel + (row + begun) * panel_width + first + within)
                tile = load_tokens(
                    base, at, begun, tokens, DIM, PART, STEP, not EVEN, DIM % PART != 0, part * PART
                )
                total = tl.dot(tl.trans(weight), tile, total, input_precision=PRECISION)

    dim = part * PART + tl.arange(0, PART)
    at = (head * tokens + own)[:, None] * DIM + dim[None, :]
    keep = (own < tokens)[:, None] & (dim < DIM)[None, :]
    if SUMS:
        so_far = place_of - head
        sums += so_far * tokens * DIM
        fresh = first >= panel_low if TRIANGLE else panel_low == 0
        if not fresh:
            total += tl.load(sums + at, mask=keep, other=0.0)
        tl.store(sums + at, total, mask=keep)
    out = pick(out, starts, place_of, 0, 1)
    tl.store(out + at, (total * scale).to(out.dtype.element_ty), mask=keep)
