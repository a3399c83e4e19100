"""What the kernels share: loading a tile, products with it, and the sizes of tiles."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from linearard.ops.relation_kl.triton.tiles import padded
from linearard.ops.relation_kl.visibility import Visibility


class Tile(NamedTuple):
    """A program owns ``rows`` rows and walks over ``columns`` columns at a time.

    Attributes:
        rows: of a program.
        columns: of a step.
        warps: of a program.
        stages: tiles loaded ahead of their use, and one.
        registers: most of a thread, so that several programs fit a Hopper GPU's multiprocessor;
            None, and on other GPUs, what the compiler chooses.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    registers: int | None = None


# padded head_dim -> tile, by what the compiler says, not measured yet (`triton_variants` does): no more
# shared memory than a block has on an A100 (163 KB) and, but for 256, on an RTX 3090 or 4090 (99)
_FORWARD_HALF = {
    16: Tile(64, 64, 4, 3),
    32: Tile(64, 64, 4, 3),
    64: Tile(64, 64, 4, 3, 168),
    128: Tile(128, 32, 8, 2, 128),
    256: Tile(64, 16, 4, 2, 168),
}
_WEIGHTS_HALF = {
    16: Tile(64, 64, 4, 2),
    32: Tile(64, 64, 4, 2),
    64: Tile(64, 64, 4, 2),
    128: Tile(128, 32, 8, 2, 128),
    256: Tile(64, 16, 4, 2, 168),
}
_PRODUCTS_HALF = {
    16: Tile(64, 64, 4, 3),
    32: Tile(64, 64, 4, 3),
    64: Tile(64, 64, 4, 3),
    128: Tile(128, 64, 8, 3, 128),
    256: Tile(128, 64, 8, 3, 128),
}
HALF = {"forward": _FORWARD_HALF, "weights": _WEIGHTS_HALF, "products": _PRODUCTS_HALF}
_HAVE_99_KB = (86, 89, 120, 121)  # compute capabilities
_BLACKWELL = (100, 103)
#: Where those tiles do not fit or spill registers: kernel, width and capabilities -> tile.
_EXCEPTIONS = {
    ("forward", 256): (_HAVE_99_KB, Tile(64, 16, 4, 2)),
    ("weights", 256): (_HAVE_99_KB, Tile(64, 16, 4, 2)),
    ("weights", 64): (_BLACKWELL, Tile(64, 32, 4, 3)),
}
_FLOAT32 = {
    16: Tile(32, 32, 4, 2),
    32: Tile(32, 32, 4, 2),
    64: Tile(32, 32, 4, 2),
    128: Tile(32, 32, 4, 2),
    256: Tile(32, 16, 8, 2),
}


def widths(head_dim: int) -> tuple[int, int]:
    """Powers of two that hold the numbers of a token: the first ones, and a tail where that is less.

    80 numbers are multiplied as 64 and 16, not as 128.
    """
    width = padded(head_dim)
    tail = max(16, 1 << (head_dim - width // 2 - 1).bit_length())
    return (width // 2, tail) if width > 16 and tail < width // 2 else (width, 0)


def capability(x: Tensor) -> int:
    """Ten times the major and once the minor number of the GPU's; 0 where ``x`` is not on one."""
    return _capability(x.device) if x.device.type == "cuda" else 0


@cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def tile_of(kernel: str, x: Tensor) -> Tile:
    """Tile of a kernel for operands like ``x``.

    Args:
        kernel: "forward"; "weights", that writes them; or "products", that multiplies them, whose
            ``columns`` are the step along the sum.
        x: [B, H, N, D].
    """
    width, architecture = padded(x.shape[-1]), capability(x)
    if x.dtype == torch.float32:
        return _FLOAT32[width]
    tile = HALF[kernel][width]
    where, other = _EXCEPTIONS.get((kernel, width), ((), tile))
    tile = other if architecture in where else tile
    return tile if architecture // 10 == 9 else tile._replace(registers=None)


def seen_operands(
    visible: Visibility, tokens: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What the kernels know of :class:`Visibility`, causality aside; None where all is seen.

    Returns:
        flags uint8 [B, N]: 0 invalid, 1 a column only (its row sees one column, so it is 0 and has
        no gradient), 2 a row that counts; bounds int32 [B, 3]: the first valid token, one past the
        last, and 1 where all between are valid; spans int32 [2, N] of :meth:`Visibility.spans`.
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
    solid = (before[:, -1] == last - first).to(torch.int32)
    return flags, torch.stack((first, last, solid), 1), spans


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
    PARTIAL: tl.constexpr,
    skip=0,
):
    """Tokens start ... start + COUNT, numbers skip ... skip + WIDTH of each, zeros beyond both ends.

    ``at`` is (b, h, stride of b, of h, of a token); EDGE: some tokens lie beyond the last; PARTIAL:
    some numbers lie beyond DIM.
    """
    b, h, stride_b, stride_h, stride_n = at
    token = tl.arange(0, COUNT)[:, None]
    dim = skip + tl.arange(0, WIDTH)[None, :]
    base = x + b * stride_b + h * stride_h + tl.cast(start, tl.int64) * stride_n
    pointers = base + token * stride_n + dim
    if EDGE or PARTIAL:
        tile = tl.load(pointers, mask=(start + token < tokens) & (dim < DIM), other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def load_rows(
    x,
    at,
    start,
    tokens,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TAIL: tl.constexpr,
    COUNT: tl.constexpr,
):
    """A program's own tokens: their first WIDTH numbers, and the TAIL behind."""
    main = load_tokens(x, at, start, tokens, DIM, WIDTH, COUNT, True, WIDTH > DIM)
    tail = main
    if TAIL:
        tail = load_tokens(x, at, start, tokens, DIM, TAIL, COUNT, True, True, WIDTH)
    return main, tail


@triton.jit
def products_with(
    own,
    x,
    at,
    start,
    tokens,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TAIL: tl.constexpr,
    COUNT: tl.constexpr,
    EDGE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of ``load_rows`` with tokens start ... start + COUNT of ``x``: [rows, COUNT], float32."""
    tile = load_tokens(x, at, start, tokens, DIM, WIDTH, COUNT, EDGE, WIDTH > DIM)
    raw = tl.dot(own[0], tl.trans(tile), input_precision=PRECISION)
    if TAIL:
        tile = load_tokens(x, at, start, tokens, DIM, TAIL, COUNT, EDGE, WIDTH + TAIL > DIM, WIDTH)
        raw = tl.dot(own[1], tl.trans(tile), raw, input_precision=PRECISION)
    return raw
