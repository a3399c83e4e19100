"""Rotary embedding, all heads of a token a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from linearard.ops.pointwise.triton.launch import on_device, warps_for


@triton.jit
def _rotate(
    x,
    cos,
    sin,
    out,
    stride_b,
    stride_t,
    stride_h,
    out_b,
    out_t,
    out_h,
    table_b,
    table_t,
    tokens,
    heads,
    half,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    program = tl.program_id(0)
    batch = (program // tokens).to(tl.int64)
    token = (program % tokens).to(tl.int64)
    columns = tl.arange(0, HALF)
    head = tl.arange(0, HEADS)
    inside = columns < half
    both = (head < heads)[:, None] & inside[None, :]
    table = batch * table_b + token * table_t + columns
    cos_1 = tl.load(cos + table, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos_2 = tl.load(cos + table + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_1 = tl.load(sin + table, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_2 = tl.load(sin + table + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = batch * stride_b + token * stride_t + head[:, None] * stride_h + columns[None, :]
    first = tl.load(x + at, mask=both, other=0.0).to(tl.float32)
    second = tl.load(x + at + half, mask=both, other=0.0).to(tl.float32)
    if BACKWARD:
        new_first = first * cos_1 + second * sin_2
        new_second = second * cos_2 - first * sin_1
    else:
        new_first = first * cos_1 - second * sin_1
        new_second = second * cos_2 + first * sin_2
    to = batch * out_b + token * out_t + head[:, None] * out_h + columns[None, :]
    tl.store(out + to, new_first, mask=both)
    tl.store(out + to + half, new_second, mask=both)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """See `api.rotate`."""
    return _launch(x, cos, sin, out, backward=False)


def rotate_backward(gradient: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `api.rotate_backward`."""
    return _launch(gradient, cos, sin, None, backward=True)


def _launch(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None, backward: bool) -> Tensor:
    batch, tokens, heads, width = x.shape
    if x.stride(3) != 1:
        x = x.contiguous()
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    cos, sin = cos.contiguous(), sin.contiguous()
    with on_device(x):
        _rotate[(batch * tokens,)](
            x,
            cos,
            sin,
            out,
            *x.stride()[:3],
            *out.stride()[:3],
            cos.stride(0) if cos.shape[0] > 1 else 0,
            width,
            tokens,
            heads,
            width // 2,
            HEADS=triton.next_power_of_2(heads),
            HALF=triton.next_power_of_2(width // 2),
            BACKWARD=backward,
            num_warps=warps_for(heads * width),
        )
    return out
