"""Multiplication in place by a number that lies on the device."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from linearard.ops.pointwise.triton.launch import on_device

_BLOCK = 4096


@triton.jit
def _scale(x, factor, count, BLOCK: tl.constexpr):
    by = tl.load(factor)
    if by != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        tl.store(x + at, tl.load(x + at, mask=inside).to(tl.float32) * by, mask=inside)


def scale_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """See `api.scale_`."""
    factor = factor.float()
    for x in tensors:
        if x.numel():
            with on_device(x):
                _scale[(triton.cdiv(x.numel(), _BLOCK),)](
                    x, factor, x.numel(), BLOCK=_BLOCK, num_warps=8
                )
