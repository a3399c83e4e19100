"""Normalisation, rotation, gating, losses of logits: fused on a GPU, plain PyTorch elsewhere.

All of them compute in float32 and round once, to the dtype of their input. Results differ from a chain of
PyTorch operations in that dtype by the roundings which that chain makes in between.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from linearard.ops.pointwise import plain


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension.

    Args:
        x: `[..., dim]`.
        weight: `[dim]`.
        eps: added to the mean square.

    Returns:
        The result, like x and contiguous, and `1 / sqrt(...)` of each row, float32 `[rows]`.
    """
    return _kernels(x).rms_norm(x, weight, eps)


def rms_norm_backward(gradient: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    """Gradient with respect to x, like x and contiguous; weight counts as constant."""
    return _kernels(x).rms_norm_backward(gradient, x, weight, rstd)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Rotary embedding whose pairs lie half a head apart: `x cos + (-x2, x1) sin`.

    Args:
        x: `[batch, tokens, heads, head_dim]`.
        cos, sin: `[batch or 1, tokens, head_dim]`.
        out: where the result goes, x itself allowed; None: a new contiguous tensor.
    """
    return _kernels(x).rotate(x, cos, sin, out)


def rotate_backward(gradient: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Gradient of `rotate` with respect to x, contiguous."""
    return _kernels(gradient).rotate_backward(gradient, cos, sin)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, elementwise; all contiguous and alike."""
    return _kernels(gate).swiglu(gate, up)


def swiglu_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients with respect to gate and up; the first takes the memory of `gradient`."""
    return _kernels(gate).swiglu_backward(gradient, gate, up)


def kl_rows(teacher: Tensor, student: Tensor, counted: Tensor | None) -> Tensor:
    """`KL(softmax(teacher) || softmax(student))` of each row, in nats.

    Args:
        teacher: logits `[rows, classes]`, contiguous.
        student: the same; overwritten with the gradient of the rows' sum.
        counted: bool `[rows]`: rows that count; the others give 0. None: all.

    Returns:
        Float32 `[rows]` (float64 for logits in it).
    """
    return _kernels(student).kl_rows(teacher, student, counted)


def cross_entropy_rows(logits: Tensor, targets: Tensor, counted: Tensor | None) -> Tensor:
    """`-log softmax(logits)[target]` of each row, in nats.

    Args:
        logits: `[rows, classes]`, contiguous; overwritten with the gradient of the rows' sum.
        targets: int64 `[rows]`.
        counted: bool `[rows]`: rows that count; the others give 0. None: all.

    Returns:
        Float32 `[rows]` (float64 for logits in it).
    """
    return _kernels(logits).cross_entropy_rows(logits, targets, counted)


def scale_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply tensors in place by a number; a factor of 1 leaves them unread on a GPU.

    Args:
        tensors: of any shapes, all on the factor's device.
        factor: a scalar.
    """
    kinds = {(x.is_cuda and x.is_contiguous(), x.dtype) for x in tensors}
    fused = kinds <= {(True, torch.float32), (True, torch.bfloat16), (True, torch.float16)}
    if tensors:
        _fused_or_plain(fused).scale_(tensors, factor)


def _kernels(x: Tensor) -> ModuleType:
    return _fused_or_plain(x.is_cuda and x.dtype in (torch.bfloat16, torch.float16))


def _fused_or_plain(fused: bool) -> ModuleType:
    return (_triton() if fused else None) or plain


@functools.cache
def _triton() -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:
        return None
    from linearard.ops.pointwise import triton

    return triton
