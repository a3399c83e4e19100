"""SwiGLU, elementwise."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from linearard.ops.pointwise.triton.launch import on_device

_BLOCK = 2048


@triton.jit
def _forward(gate, up, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, g * tl.sigmoid(g) * u, mask=inside)


@triton.jit
def _backward(gradient, gate, up, to_up, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    slope = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(g)
    tl.store(to_up + at, slope * g * sigmoid, mask=inside)
    tl.store(gradient + at, slope * u * sigmoid * (1 + g * (1 - sigmoid)), mask=inside)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `api.swiglu`."""
    out = torch.empty_like(gate)
    with on_device(gate):
        _forward[(triton.cdiv(gate.numel(), _BLOCK),)](
            gate, up, out, gate.numel(), BLOCK=_BLOCK, num_warps=4
        )
    return out


def swiglu_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """See `api.swiglu_backward`."""
    to_up = torch.empty_like(up)
    with on_device(gate):
        _backward[(triton.cdiv(gate.numel(), _BLOCK),)](
            gradient, gate, up, to_up, gate.numel(), BLOCK=_BLOCK, num_warps=4
        )
    return gradient, to_up
