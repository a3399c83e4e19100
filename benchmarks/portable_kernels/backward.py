"""Backward, from the host: weights of a panel, then their products, panel after panel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.portable_kernels.launch import launch
from benchmarks.portable_kernels.panels import Panel, panels
from benchmarks.portable_kernels.products_kernel import products_kernel
from benchmarks.portable_kernels.tiles import seen_operands, tile_of, widths
from benchmarks.portable_kernels.weights_kernel import weights_kernel
from linearard.ops.relation_kl.triton.relations import first_heads, strides
from linearard.ops.relation_kl.triton.tiles import LOG2_E, on_device, padded, precision, row_major

_HALF_PEAK = 2.0**14  # float16 weights are scaled to at most this, out of the subnormal range
_CHUNK = 2048  # columns of a program of the first kernel, or a quarter of it
_PROGRAMS = 264  # of whole chunks that a large GPU is full of
_WIDEST = 128  # numbers of a token that a program of the second adds up
_ROOM_BYTES = 1 << 30  # of the weights at a time


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
    if tokens == 1:  # nothing to learn, and Triton would make the 1 a constant of kernels
        for i in asked:
            students = (relations[i].q_s, relations[i].k_s)
            result[i] = tuple(None if x is None else torch.zeros_like(x) for x in students)
        return result

    (stats,) = stats
    if len(asked) < len(relations):
        parts = stats.split([r.q_s.shape[0] * r.q_s.shape[1] for r in relations], 1)
        stats = torch.cat([parts[i] for i in asked], 1)
    scaled, peaks = zip(*(_scaled(grads[i], dtype) for i in asked), strict=True)
    rows = [g.reshape(-1, tokens) for g in scaled]
    # what each row is divided by, so that a pair need not be
    grad = (torch.cat(rows) if len(rows) > 1 else rows[0]) * stats[3]
    queries = [row_major(*(relations[i][side] for i in asked)) for side in (0, 2)]
    keys = None
    if relations[0].k_s is not None:
        keys = [row_major(relations[0][side]) for side in (1, 3)]
    gradients = _gradients(queries, keys, grad, stats, visible, scale, needs[0])
    if keys is not None:
        return [tuple(_restored(g, peaks[0], dtype) for g in gradients)]
    for i, gradient, peak in zip(asked, gradients, peaks, strict=True):
        result[i] = (_restored(gradient, peak, dtype), None)
    return result


def _gradients(queries, keys, grad, stats, visible, scale, needed) -> Sequence[Tensor | None]:
    """Of the student's queries in each self-relation; or of queries and keys, those ``needed``.

    ``queries``, ``keys``: (teachers, students), ``keys`` None in self-relations; ``grad`` [sum of
    B * H, N], over the sum of the row's exponentials.
    """
    like = queries[1][0]
    tokens = like.shape[2]
    seen = seen_operands(visible, tokens, like.device)
    share = 1 if keys is None else like.shape[1] // keys[1][0].shape[1]
    triangle = visible.causal or keys is None
    weights, products = tile_of("weights", like), tile_of("products", like)
    block = max(weights.rows, products.rows)
    room = _ROOM_BYTES // like.element_size()
    parts = panels(len(grad), share, tokens, block, triangle, visible.window, room)
    panel = like.new_empty(max(p.heads * p.rows * p.width for p in parts))
    several = len({p.low for p in parts}) > 1
    out = torch.float32 if like.dtype == torch.float16 else None
    common = (panel, seen, visible, block, products, scale)
    if keys is None:
        writers = [_Products(queries[1], queries[1], True, True, 1, several, out, common)]
    else:
        dq = _Products(queries[1], keys[1], True, False, 1, False, out, common)
        dk = _Products(keys[1], queries[1], False, True, share, several, out, common)
        writers = [w for w, n in zip((dq, dk), needed, strict=True) if n]
    with on_device(like):
        for part in parts:
            _write_weights(queries, keys, grad, stats, part, visible, weights, scale, common)
            for writer in writers:
                writer.add(part)
    if keys is None:
        return writers[0].out
    found = iter(writers)
    return [next(found).out[0] if n else None for n in needed]


def _write_weights(queries, keys, grad, stats, part: Panel, visible, tile, scale, common) -> None:
    panel, seen, _, block, _, _ = common
    like = queries[1][0]
    of = queries if keys is None else keys
    width, tail = widths(like.shape[3])
    blocks = part.heads * (part.rows // tile.rows)
    chunk = _CHUNK if blocks >= _PROGRAMS else _CHUNK // 4
    base = part.base // chunk * chunk
    chunks = -(-(part.base + part.width - base) // chunk)
    arguments = (
        *(tuple(x) for x in (*queries, *of)),
        stats,
        grad,
        *seen,
        panel,
        *(strides(x) for x in (*queries, *of)),
        like.shape[2],
        len(grad),
        first_heads(queries[1]),
        tuple(x.shape[1] for x in queries[1]),
        tuple(x.shape[1] for x in of[1]),
        part.first_head,
        *part.in_blocks(block),
        chunks,
        scale * LOG2_E,
    )
    constants = {
        "DIM": like.shape[3],
        "WIDTH": width,
        "TAIL": tail,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "CHUNK": chunk,
        "BLOCK": block,
        "CAUSAL": visible.causal,
        "SELF": keys is None,
        "HAS_VALID": visible.valid is not None,
        "BANDED": visible.banded,
        "PRECISION": precision(like),
    }
    launch(weights_kernel, blocks * chunks, arguments, constants, tile)


class _Products:
    """Gradients of ``of``, one tensor a relation, that grow panel by panel: products with ``x``."""

    def __init__(self, of, x, row, col, share, several, dtype, common):
        self._x, self._row, self._col, self._share, self._common = x, row, col, share, common
        self.out = [torch.empty(y.shape, dtype=dtype or y.dtype, device=y.device) for y in of]
        self._of = of
        count = sum(y.numel() for y in of)
        self._sums = of[0].new_empty(count, dtype=torch.float32) if several and col else None

    def add(self, part: Panel) -> None:
        panel, seen, visible, block, tile, scale = self._common
        like = self._of[0]
        tokens, head_dim = like.shape[2:]
        width = padded(head_dim)
        wide = min(width, _WIDEST)
        rows = part.rows
        if self._col:
            rows = part.low + part.rows - part.base
            rows = rows if visible.causal or self._row else part.width
        heads = part.heads // self._share
        arguments = (
            tuple(self._x),
            panel,
            self._sums,
            tuple(self.out),
            *seen[1:],
            strides(self._x),
            tokens,
            first_heads(self._of),
            tuple(y.shape[1] for y in self._of),
            tuple(x.shape[1] for x in self._x),
            self._share,
            part.first_head // self._share,
            *part.in_blocks(block),
            scale,
        )
        constants = {
            "DIM": head_dim,
            "PART": wide,
            "PARTS": width // wide,
            "ROWS": tile.rows,
            "STEP": tile.columns,
            "BLOCK": block,
            "CAUSAL": visible.causal,
            "ROW": self._row,
            "COL": self._col,
            "SUMS": self._sums is not None,
            "EVEN": tokens % block == 0,
            "HAS_VALID": visible.valid is not None,
            "BANDED": visible.banded,
            "PRECISION": precision(like),
        }
        programs = heads * (rows // tile.rows) * (width // wide)
        launch(products_kernel, programs, arguments, constants, tile)
