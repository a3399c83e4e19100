"""RMS normalisation, a row a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from linearard.ops.pointwise.triton.launch import on_device, warps_for


@triton.jit
def _forward(x, weight, out, rstd_out, stride, dim, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < dim
    values = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(values * values, 0) / dim + eps)
    tl.store(rstd_out + row, rstd)
    tl.store(out + row * dim + columns, values * rstd * scale, mask=inside)


@triton.jit
def _backward(gradient, x, weight, rstd_in, out, stride, stride_g, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < dim
    values = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(gradient + row * stride_g + columns, mask=inside, other=0.0).to(tl.float32)
    rstd = tl.load(rstd_in + row)
    slope *= scale
    unit = values * rstd
    inward = tl.sum(slope * unit, 0) / dim
    tl.store(out + row * dim + columns, rstd * (slope - unit * inward), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `api.rms_norm`."""
    rows = _rows(x)
    count, dim = rows.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rstd = torch.empty(count, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(dim)
    with on_device(x):
        _forward[(count,)](
            rows, weight, out, rstd, rows.stride(0), dim, eps, BLOCK=block, num_warps=warps_for(dim)
        )
    return out, rstd


def rms_norm_backward(gradient: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    """See `api.rms_norm_backward`."""
    rows, slopes = _rows(x), _rows(gradient)
    count, dim = rows.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    with on_device(x):
        _backward[(count,)](
            slopes,
            rows,
            weight,
            rstd,
            out,
            rows.stride(0),
            slopes.stride(0),
            dim,
            BLOCK=triton.next_power_of_2(dim),
            num_warps=warps_for(dim),
        )
    return out


def _rows(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
