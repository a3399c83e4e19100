"""The same in plain PyTorch: for every device and dtype, and what the kernels are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `api.rms_norm`."""
    wide = _wide(x)
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * rstd * weight).to(x.dtype).contiguous(), rstd.flatten()


def rms_norm_backward(gradient: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    """See `api.rms_norm_backward`."""
    rstd = rstd.view(*x.shape[:-1], 1)
    unit, slope = _wide(x) * rstd, _wide(gradient) * weight
    inward = (slope * unit).mean(-1, keepdim=True)
    return (rstd * (slope - unit * inward)).to(x.dtype).contiguous()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """See `api.rotate`."""
    wide, cos, sin = _wide(x), cos.unsqueeze(2), sin.unsqueeze(2)
    first, second = wide.chunk(2, dim=-1)
    rotated = wide * cos + torch.cat([-second, first], -1) * sin
    return rotated.to(x.dtype).contiguous() if out is None else out.copy_(rotated)


def rotate_backward(gradient: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `api.rotate_backward`."""
    wide, cos, sin = _wide(gradient), cos.unsqueeze(2), sin.unsqueeze(2)
    first, second = (wide * sin).chunk(2, dim=-1)
    return (wide * cos + torch.cat([second, -first], -1)).to(gradient.dtype).contiguous()


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `api.swiglu`."""
    return (torch.nn.functional.silu(_wide(gate)) * _wide(up)).to(gate.dtype)


def swiglu_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """See `api.swiglu_backward`."""
    wide, sigmoid = _wide(gate), torch.sigmoid(_wide(gate))
    slope = _wide(gradient)
    to_up = (slope * wide * sigmoid).to(up.dtype)
    to_gate = slope * _wide(up) * sigmoid * (1 + wide * (1 - sigmoid))
    return gradient.copy_(to_gate), to_up


def kl_rows(teacher: Tensor, student: Tensor, counted: Tensor | None) -> Tensor:
    """See `api.kl_rows`."""
    expected, got = _wide(teacher).log_softmax(-1), _wide(student).log_softmax(-1)
    p = expected.exp()
    rows = expected.sub_(got).mul_(p).sum(-1)
    return _overwrite(student, got.exp_().sub_(p), rows, counted)


def cross_entropy_rows(logits: Tensor, targets: Tensor, counted: Tensor | None) -> Tensor:
    """See `api.cross_entropy_rows`."""
    log_p = _wide(logits).log_softmax(-1)
    rows = -log_p.gather(1, targets[:, None])[:, 0]
    slope = log_p.exp_()
    slope.scatter_add_(1, targets[:, None], torch.full_like(rows, -1.0)[:, None])
    return _overwrite(logits, slope, rows, counted)


def scale_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """See `api.scale_`."""
    torch._foreach_mul_(list(tensors), factor)


def _overwrite(logits: Tensor, slope: Tensor, rows: Tensor, counted: Tensor | None) -> Tensor:
    if counted is not None:
        rows = rows.masked_fill(~counted, 0.0)
        slope.masked_fill_(~counted[:, None], 0.0)
    logits.copy_(slope)
    return rows
