"""What the kernels share: loading a tile, padding, and the tile sizes measured on an H200."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from linearard.ops.relation_kl.visibility import Visibility

LOG2_E = 1.4426950408889634
_LARGEST_TILE = 128  # tokens
_CACHE_BYTES = 32 << 20  # of the 50 MB second-level cache


class Tile(NamedTuple):
    """A program owns ``rows`` rows and walks over ``columns`` columns at a time."""

    rows: int
    columns: int
    warps: int
    stages: int


# padded head_dim -> tile, by measurement on an H200 (bfloat16 at 64, 128, 256; float32 at 64, 128)
_FORWARD_HALF = {
    16: Tile(64, 128, 4, 3),
    32: Tile(64, 128, 4, 3),
    64: Tile(64, 128, 4, 3),
    128: Tile(128, 64, 8, 3),
    256: Tile(64, 64, 4, 2),
}
_BACKWARD_HALF = {
    16: Tile(64, 128, 4, 2),
    32: Tile(64, 128, 4, 2),
    64: Tile(64, 128, 4, 2),
    128: Tile(64, 64, 4, 2),
    256: Tile(128, 32, 8, 2),
}
_FLOAT32 = {
    16: Tile(32, 32, 4, 2),
    32: Tile(32, 32, 4, 2),
    64: Tile(32, 32, 4, 2),
    128: Tile(32, 32, 4, 2),
    256: Tile(32, 16, 8, 2),
}


def padded(head_dim: int) -> int:
    """The power of two that tiles are wide; the rest is masked to zero."""
    return max(16, triton.next_power_of_2(head_dim))


def forward_tile(x: Tensor) -> Tile:
    """Tile of the forward kernel for operands like ``x``."""
    return _fit(_FLOAT32 if x.dtype == torch.float32 else _FORWARD_HALF, x)


def backward_tile(x: Tensor) -> Tile:
    """Tile of the backward kernel for operands like ``x``."""
    return _fit(_FLOAT32 if x.dtype == torch.float32 else _BACKWARD_HALF, x)


def _fit(table: dict[int, Tile], x: Tensor) -> Tile:
    """The measured tile, or a smaller one where the GPU has less shared memory than an H200."""
    width = padded(x.shape[-1])
    tile = table[width]
    if x.device.type != "cuda":
        return tile
    room = torch.cuda.get_device_properties(x.device).shared_memory_per_block_optin

    def needs(t: Tile) -> int:  # two models, and what the compiler adds
        return 2 * x.element_size() * width * (t.rows + t.stages * t.columns) + 4096

    while needs(tile) > room:
        if tile.stages > 1:
            tile = tile._replace(stages=tile.stages - 1)
        elif tile.columns > 16:
            tile = tile._replace(columns=tile.columns // 2)
        else:
            tile = tile._replace(rows=tile.rows // 2)
    return tile


def row_major(*operands: Tensor) -> list[Tensor]:
    """The operands as the kernels address them: copied only where they cannot.

    head_dim is contiguous. Offsets within a tile are 32-bit, all others 64-bit.
    """
    return [
        x if x.stride(-1) == 1 and x.stride(-2) * _LARGEST_TILE < 2**31 else x.contiguous()
        for x in operands
    ]


def precision(x: Tensor) -> str:
    """float32 products in float32, not in tf32."""
    return "ieee" if x.dtype == torch.float32 else "tf32"


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, where tensors lie on a CPU."""
    return triton.knobs.runtime.interpret


def on_device(x: Tensor) -> AbstractContextManager:
    """Launch on the device of ``x``, whichever is current."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()


def tma_fits(*operands: Tensor) -> bool:
    """Whether the tensor memory accelerator (Hopper and later) should read the operands' tiles.

    Not float32: its products take operands from registers, and whole tiles of them spill.
    """
    return all(
        x.device.type == "cuda"
        and x.dtype != torch.float32
        and torch.cuda.get_device_capability(x.device)[0] >= 9
        and x.data_ptr() % 16 == 0
        and all(stride > 0 and stride * x.element_size() % 16 == 0 for stride in x.stride()[:3])
        for x in operands
    )


def descriptor(x: Tensor, tokens: int) -> TensorDescriptor:
    """For tiles of ``tokens`` tokens of one head of ``x`` [B, H, N, D]."""
    block = [1, 1, tokens, padded(x.shape[-1])]
    return TensorDescriptor(x, list(x.shape), list(x.stride()), block)


def heads_together(x: Tensor) -> int:
    """How many heads of two tensors like ``x`` share the cache while their rows are worked on."""
    tokens, head_dim = x.shape[2:]
    return max(1, _CACHE_BYTES // (2 * tokens * head_dim * x.element_size()))


def seen_operands(
    visible: Visibility, tokens: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What the kernels know of :class:`Visibility`, causality aside; None where all is seen.

    Returns:
        flags uint8 [B, N]: 0 invalid, 1 a column only (its row sees one column, so it is 0 and has
        no gradient), 2 a row that counts; bounds int32 [B, 2]: the first valid token and one past
        the last; spans int32 [2, N] of :meth:`Visibility.spans`.
    """
    spans = visible.spans(tokens, device) if visible.banded else None
    if visible.valid is None:
        return None, None, spans
    valid = visible.valid
    at = torch.arange(tokens, device=device, dtype=torch.int32)
    first = at.masked_fill(~valid, tokens).amin(1)
    last = (at + 1).masked_fill(~valid, 0).amax(1)
    before = torch.nn.functional.pad(valid.cumsum(1, dtype=torch.int32), (1, 0))
    end = before[:, 1:] if visible.causal else before[:, -1:]
    if spans is not None:
        end = end if visible.causal else before[:, spans[1]]
        before = before[:, spans[0]]
        columns = end - before
    else:
        columns = end
    flags = valid.to(torch.uint8) + (valid & (columns > 1)).to(torch.uint8)
    return flags, torch.stack((first, last), 1), spans


@triton.jit
def place(blocks, heads, together):
    """Head (of B * H) and row block of this program: ``together`` heads at a time, block by block."""
    pid = tl.program_id(0)
    first = pid // (blocks * together) * together
    within = pid - first * blocks
    size = tl.minimum(heads - first, together)
    return first + within % size, within // size


@triton.jit
def exponential(raw, c, offset):
    """``exp2(c raw + offset)`` and its exponent, which is rounded once, in every kernel alike.

    Backward divides these by the sum that forward formed of them; a product rounded on its own in
    one of the two would be off by half a unit of the score, in all pairs of a row together.
    """
    exponent = tl.fma(raw, c, offset)
    return tl.exp2(exponent), exponent


@triton.jit
def load_tokens(
    x,
    at,
    start,
    tokens,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    EDGE: tl.constexpr,
    TMA: tl.constexpr,
):
    """Tokens start ... start + COUNT, [COUNT, WIDTH], zeros beyond N and head_dim.

    ``at`` is (b, h, stride of b, of h, of a token); ``x`` is a pointer or, with TMA, a descriptor.
    """
    b, h, stride_b, stride_h, stride_n = at
    if TMA:
        tile = x.load([b.to(tl.int32), h.to(tl.int32), start, 0]).reshape(COUNT, WIDTH)
    else:
        token = tl.arange(0, COUNT)[:, None]
        dim = tl.arange(0, WIDTH)[None, :]
        base = x + b * stride_b + h * stride_h + tl.cast(start, tl.int64) * stride_n
        pointers = base + token * stride_n + dim
        if EDGE or DIM != WIDTH:
            tile = tl.load(pointers, mask=(start + token < tokens) & (dim < DIM), other=0.0)
        else:
            tile = tl.load(pointers)
    return tile
