"""Backward in 4 u: each tile of scores serves its columns and its rows.

A program owns COLUMNS tokens and walks over the rows that see them. The gradient of its own tokens
stays in registers; that of a tile of rows is added to a float32 buffer that all programs share. The
order of these adds changes from run to run, and so do the last bits: not for deterministic runs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from linearard.ops.relation_kl.triton.backward import _restored, _scaled
from linearard.ops.relation_kl.triton.backward_kernel import _load_stats, _weight
from linearard.ops.relation_kl.triton.tiles import (
    LOG2_E,
    Tile,
    descriptor,
    heads_together,
    load_tokens,
    on_device,
    padded,
    place,
    precision,
    tma_fits,
)

# rows: what the loop walks over at a time; columns: what a program owns
TILES = [Tile(64, 128, 8, 2), Tile(64, 128, 8, 1), Tile(64, 64, 4, 2)]


@triton.jit
def _add(out, at, head, start, value, tokens, DIM: tl.constexpr, COUNT: tl.constexpr,
         WIDTH: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    if TMA:
        out.atomic_add([head.to(tl.int32), start, 0], value.reshape(1, COUNT, WIDTH))
    else:
        token = start + tl.arange(0, COUNT)[:, None]
        dim = tl.arange(0, WIDTH)[None, :]
        pointers = out + (head * tokens + token) * DIM + dim
        tl.atomic_add(pointers, value, mask=(token < tokens) & (dim < DIM), sem="relaxed")


@triton.jit
def _sweep(total, own_t, own_s, x_t, x_s, at, out, stats, grad, length, columns, head, low, high,
           tokens, c, scale, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
           DIAGONAL: tl.constexpr, TMA: tl.constexpr, REDUCE: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    for start in range(low, high, ROWS):
        tile_t = load_tokens(x_t, at, start, tokens, DIM, WIDTH, ROWS, True, TMA)
        tile_s = load_tokens(x_s, at, start, tokens, DIM, WIDTH, ROWS, True, TMA)
        rows = start + tl.arange(0, ROWS)
        raw_t = tl.dot(own_t, tl.trans(tile_t), input_precision=PRECISION)  # [COLUMNS, ROWS]
        raw_s = tl.dot(own_s, tl.trans(tile_s), input_precision=PRECISION)
        offset_t, offset_s, ratio, g = _load_stats(
            stats, grad, head * tokens + rows, length, rows < tokens, True
        )
        weight = _weight(
            raw_t, raw_s, c, offset_t[None, :], offset_s[None, :], ratio[None, :], g[None, :]
        )
        if DIAGONAL:
            weight = tl.where(rows[None, :] >= columns[:, None], weight, 0.0)
        weight = weight.to(tile_s.dtype)
        total = tl.dot(weight, tile_s, total, input_precision=PRECISION)
        part = tl.dot(tl.trans(weight), own_s, input_precision=PRECISION)
        _add(out, at, head, start, part * scale, tokens, DIM, ROWS, WIDTH, REDUCE)
    return total


@triton.jit
def shared_scores_kernel(x_t, x_s, own_t, own_s, out, out_pointer, stats, grad, strides, tokens,
                         heads, together, c, scale, DIM: tl.constexpr, WIDTH: tl.constexpr,
                         ROWS: tl.constexpr, COLUMNS: tl.constexpr, TMA: tl.constexpr,
                         REDUCE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One program: COLUMNS tokens of one head; the first see the most rows, and start first."""
    blocks = tl.cdiv(tokens, COLUMNS)
    all_heads = tl.num_programs(0) // blocks
    head, block = place(blocks, all_heads, together)
    head = head.to(tl.int64)
    first = block * COLUMNS
    at = (head // heads, head % heads, strides[0], strides[1], strides[2])
    columns = first + tl.arange(0, COLUMNS)
    tile_t = load_tokens(own_t, at, first, tokens, DIM, WIDTH, COLUMNS, True, False)
    tile_s = load_tokens(own_s, at, first, tokens, DIM, WIDTH, COLUMNS, True, False)
    length = all_heads.to(tl.int64) * tokens
    total = tl.zeros([COLUMNS, WIDTH], tl.float32)
    beyond = tl.minimum(tl.cdiv(first + COLUMNS, ROWS) * ROWS, tokens)
    low = first // ROWS * ROWS
    total = _sweep(
        total, tile_t, tile_s, x_t, x_s, at, out, stats, grad, length, columns, head, low, beyond,
        tokens, c, scale, DIM, WIDTH, ROWS, True, TMA, REDUCE, PRECISION,
    )  # fmt: skip
    total = _sweep(
        total, tile_t, tile_s, x_t, x_s, at, out, stats, grad, length, columns, head, beyond,
        tokens, tokens, c, scale, DIM, WIDTH, ROWS, False, TMA, REDUCE, PRECISION,
    )  # fmt: skip
    _add(out_pointer, at, head, first, total * scale, tokens, DIM, COLUMNS, WIDTH, False)


def backward(grads, stats, relations, visible, scale, needs, tile=TILES[0], tma=None):
    """As ``autograd.Implementation.backward``, of one causal self-relation without limits.

    ``tma``: whether tiles are read and added through descriptors; by default where they fit.
    """
    (relation,), (upstream,), (stats,) = relations, grads, stats
    x_t, x_s = relation.q_t.contiguous(), relation.q_s.contiguous()
    batch, heads, tokens, head_dim = x_s.shape
    tma = tma_fits(x_t, x_s) if tma is None else tma
    scaled, peak = _scaled(upstream, x_s.dtype)
    grad = scaled.reshape(-1, tokens) * stats[3]
    out = torch.zeros(x_s.shape, dtype=torch.float32, device=x_s.device)
    reduce = tma and head_dim % 4 == 0
    block = [1, tile.rows, padded(head_dim)]
    flat = out.view(-1, tokens, head_dim)
    shared = TensorDescriptor(flat, list(flat.shape), list(flat.stride()), block) if reduce else out
    read = [descriptor(x, tile.rows) if tma else x for x in (x_t, x_s)]
    with on_device(x_s):
        shared_scores_kernel[(batch * heads * triton.cdiv(tokens, tile.columns),)](
            *read, x_t, x_s, shared, out, stats, grad, x_s.stride()[:3], tokens, heads,
            heads_together(x_s), scale * LOG2_E, scale,
            DIM=head_dim, WIDTH=padded(head_dim), ROWS=tile.rows, COLUMNS=tile.columns,
            TMA=tma, REDUCE=reduce, PRECISION=precision(x_s),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return [(_restored(out, peak, x_s.dtype).to(x_s.dtype), None)]
