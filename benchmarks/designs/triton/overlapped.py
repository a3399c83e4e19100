"""Forward in Gluon: a tile's teacher exponentials run while the student's scores are multiplied.

Triton waits after each score product. Here one product is always in flight: the student's of this
tile during the teacher's exponentials, the teacher's of the next during the student's. Two warp
groups of 64 rows share the tiles, which halves what 64-row programs read from the second-level cache.
"""

from __future__ import annotations

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from linearard.ops.relation_kl.triton.tiles import LOG2_E, heads_together, on_device, place

ROWS = 128
TILES = [(64, 4, 2), (64, 4, 1), (128, 2, 1)]  # columns, tiles of the ring, tiles an iteration


@gluon.jit
def _fetch(k_t, k_s, ring_t, ring_s, full, base, tile, slot, pred, COLUMNS: gl.constexpr):
    mbarrier.expect(full.index(slot), k_t.block_type.nbytes + k_s.block_type.nbytes, pred=pred)
    at = [base + tile * COLUMNS, 0]
    tma.async_copy_global_to_shared(k_t, at, full.index(slot), ring_t.index(slot), pred)
    tma.async_copy_global_to_shared(k_s, at, full.index(slot), ring_s.index(slot), pred)


@gluon.jit
def _scores(own, ring, slot, zero):
    return warpgroup_mma(own, ring.index(slot).permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def _teacher(raw, state, i, rows, c, COLUMNS: gl.constexpr, EDGE: gl.constexpr,
             layout: gl.constexpr):  # fmt: skip
    """The teacher's half of tile i: its exponents and exponentials, what the student's half needs."""
    max_t = state[0]
    if EDGE:
        seen = (i * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(0, layout)))[None, :]
        raw = gl.where(seen <= rows[:, None], raw, -1e30 / c)
    new_t = gl.maximum(max_t, gl.max(raw, 1) * c)
    exponent = gl.fma(raw, c, -new_t[:, None])
    p = gl.exp2(exponent)
    return new_t, exponent, p, gl.sum(p, 1)


@gluon.jit
def _student(raw, state, teacher, i, rows, c, COLUMNS: gl.constexpr, EDGE: gl.constexpr,
             layout: gl.constexpr):  # fmt: skip
    max_t, sum_t, max_s, sum_s, cross = state
    new_t, exponent_t, p_t, part_t = teacher
    if EDGE:
        seen = (i * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(0, layout)))[None, :]
        raw = gl.where(seen <= rows[:, None], raw, -1e30 / c)
    new_s = gl.maximum(max_s, gl.max(raw, 1) * c)
    exponent_s = gl.fma(raw, c, -new_s[:, None])
    p_s = gl.exp2(exponent_s)
    shrink_t = gl.exp2(max_t - new_t)
    moved = (new_s - max_s) - (new_t - max_t)
    cross = (cross + sum_t * moved) * shrink_t + gl.sum(p_t * (exponent_t - exponent_s), 1)
    sum_t = sum_t * shrink_t + part_t
    sum_s = sum_s * gl.exp2(max_s - new_s) + gl.sum(p_s, 1)
    return new_t, sum_t, new_s, sum_s, cross


@gluon.jit
def _step(state, own_t, own_s, k_t, k_s, ring_t, ring_s, full, base, rows, i, tiles, c,
          COLUMNS: gl.constexpr, STAGES: gl.constexpr, PAIR: gl.constexpr, EDGE: gl.constexpr,
          layout: gl.constexpr):  # fmt: skip
    """Tiles i ... i + PAIR. No product stays in flight over the loop's edge: accumulators that a
    loop carries are copied there, and ptxas then serialises every product (C7514)."""
    zero = gl.zeros([128, COLUMNS], gl.float32, layout)
    mbarrier.wait(full.index(i % STAGES), (i // STAGES) & 1)
    flight_t = _scores(own_t, ring_t, i % STAGES, zero)
    flight_s = _scores(own_s, ring_s, i % STAGES, zero)
    raw_t = warpgroup_mma_wait(1, deps=[flight_t])
    for j in gl.static_range(PAIR):
        new_t, exponent_t, p_t, part_t = _teacher(raw_t, state, i + j, rows, c, COLUMNS, EDGE,
                                                  layout)  # fmt: skip
        if j + 1 < PAIR:
            slot = (i + j + 1) % STAGES
            mbarrier.wait(full.index(slot), ((i + j + 1) // STAGES) & 1)
            flight_t = _scores(own_t, ring_t, slot, zero)
            raw_s = warpgroup_mma_wait(1, deps=[flight_s])
            teacher = (new_t, exponent_t, p_t, part_t)
            state = _student(raw_s, state, teacher, i + j, rows, c, COLUMNS, EDGE, layout)
            flight_s = _scores(own_s, ring_s, slot, zero)
            raw_t = warpgroup_mma_wait(1, deps=[flight_t])
        else:
            raw_s = warpgroup_mma_wait(0, deps=[flight_s])
            teacher = (new_t, exponent_t, p_t, part_t)
            state = _student(raw_s, state, teacher, i + j, rows, c, COLUMNS, EDGE, layout)
    gl.thread_barrier()  # both groups have read these tiles: their places may be filled
    for j in gl.static_range(PAIR):
        _fetch(k_t, k_s, ring_t, ring_s, full, base, i + j + STAGES, (i + j) % STAGES,
               i + j + STAGES < tiles, COLUMNS)  # fmt: skip
    return state


@gluon.jit
def overlapped_kernel(q_t, q_s, k_t, k_s, kl, stats, tokens, together, c, COLUMNS: gl.constexpr,
                      STAGES: gl.constexpr, PAIR: gl.constexpr, layout: gl.constexpr):  # fmt: skip
    blocks = gl.cdiv(tokens, 128)
    heads = gl.num_programs(0) // blocks
    head, block = place(blocks, heads, together)
    first = (blocks - 1 - block) * 128
    base = head * tokens  # a tile beyond the head reads another's tokens: no row sees them
    own_t = gl.allocate_shared_memory(q_t.dtype, [128, q_t.block_type.shape[1]], q_t.layout)
    own_s = gl.allocate_shared_memory(q_s.dtype, [128, q_s.block_type.shape[1]], q_s.layout)
    ring: gl.constexpr = [STAGES, COLUMNS, k_t.block_type.shape[1]]
    ring_t = gl.allocate_shared_memory(k_t.dtype, ring, k_t.layout)
    ring_s = gl.allocate_shared_memory(k_s.dtype, ring, k_s.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES + 1, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES + 1):
        mbarrier.init(full.index(s), count=1)
    fence_async_shared()
    mbarrier.expect(full.index(STAGES), q_t.block_type.nbytes + q_s.block_type.nbytes)
    tma.async_copy_global_to_shared(q_t, [base + first, 0], full.index(STAGES), own_t)
    tma.async_copy_global_to_shared(q_s, [base + first, 0], full.index(STAGES), own_s)
    plain = first // COLUMNS
    tiles = plain + 128 // COLUMNS
    for s in gl.static_range(STAGES):
        _fetch(k_t, k_s, ring_t, ring_s, full, base, s, s, s < tiles, COLUMNS)
    rows = first + gl.arange(0, 128, gl.SliceLayout(1, layout))
    least = gl.full([128], -1e20, gl.float32, gl.SliceLayout(1, layout))
    zero = gl.zeros([128], gl.float32, gl.SliceLayout(1, layout))
    state = (least, zero, least, zero, zero)
    mbarrier.wait(full.index(STAGES), 0)
    for i in range(0, plain, PAIR):
        state = _step(
            state, own_t, own_s, k_t, k_s, ring_t, ring_s, full, base, rows, i, tiles, c,
            COLUMNS, STAGES, PAIR, False, layout,
        )  # fmt: skip
    for i in range(plain, tiles, PAIR):
        state = _step(
            state, own_t, own_s, k_t, k_s, ring_t, ring_s, full, base, rows, i, tiles, c,
            COLUMNS, STAGES, PAIR, True, layout,
        )  # fmt: skip
    max_t, sum_t, max_s, sum_s, cross = state
    counts = (rows > 0) & (rows < tokens)
    inside = rows < tokens
    sum_t = gl.where(counts, sum_t, 1.0)
    sum_s = gl.where(counts, sum_s, 1.0)
    bits = cross / sum_t - gl.log2(gl.div_rn(sum_t, sum_s))
    at = head.to(gl.int64) * tokens + rows
    length = heads.to(gl.int64) * tokens
    gl.store(kl + at, gl.where(counts, bits * 0.6931471805599453, 0.0), mask=inside)
    gl.store(stats + at, gl.where(counts, -max_t, float("-inf")), mask=inside)
    gl.store(stats + length + at, gl.where(counts, -max_s, float("-inf")), mask=inside)
    gl.store(stats + 2 * length + at, gl.div_rn(sum_s, sum_t), mask=inside)
    gl.store(stats + 3 * length + at, 1.0 / sum_s, mask=inside)


def forward(relations, visible, scale, tile=TILES[0]):
    """As ``autograd.Implementation.forward``, of one causal self-relation, half precision.

    head_dim 64 or 128, at least two tokens; no windows, documents or invalid tokens.
    """
    (relation,) = relations
    x_t, x_s = relation.q_t.contiguous(), relation.q_s.contiguous()
    batch, heads, tokens, head_dim = x_s.shape
    columns, stages, pair = tile
    kind = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[x_s.dtype]
    kl = torch.empty(x_s.shape[:3], dtype=torch.float32, device=x_s.device)
    stats = kl.new_empty(4, batch * heads, tokens)

    def read(x, count):
        shared = gl.NVMMASharedLayout.get_default_for([count, head_dim], kind)
        return TensorDescriptor.from_tensor(x.view(-1, head_dim), [count, head_dim], shared)

    layout = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, columns, 16])
    with on_device(x_s):
        overlapped_kernel[(batch * heads * triton.cdiv(tokens, ROWS),)](
            read(x_t, ROWS), read(x_s, ROWS), read(x_t, columns), read(x_s, columns), kl, stats,
            tokens, heads_together(x_s), scale * LOG2_E, COLUMNS=columns, STAGES=stages,
            PAIR=pair, layout=layout, num_warps=8,
        )  # fmt: skip
    return [kl], [stats]
