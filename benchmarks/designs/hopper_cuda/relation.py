"""The design's forward and backward on tensors, and joined to autograd."""

from __future__ import annotations

import math

import torch

from benchmarks.designs.hopper_cuda.launcher import LaunchError, TensorMap, launch

LOG2_E = 1.4426950408889634
BLOCK = 128  # tokens, as in tiles.h
_SLACK = 1024 + 256  # alignment and barriers
_CACHE_BYTES = 32 << 20


def _tile(head_dim):
    return BLOCK * head_dim * 2


def _shared(kind, head_dim):
    """Bytes; ForwardShape and BackwardShape say of what."""
    if kind == "forward":
        return (2 + (5 if head_dim == 128 else 8)) * _tile(head_dim) + _SLACK
    return (2 + (3 if head_dim == 128 else 6)) * _tile(head_dim) + 4 * BLOCK * 128 + _SLACK


def _checked(teacher, student):
    if teacher.shape != student.shape or teacher.shape[-1] not in (64, 128):
        raise LaunchError(f"shapes {teacher.shape} and {student.shape}: equal, head_dim 64 or 128")
    if torch.cuda.get_device_capability(teacher.device) != (9, 0):
        raise LaunchError("needs a Hopper GPU (compute capability 9.0)")
    batch, heads, tokens, head_dim = teacher.shape
    return batch * heads, heads, tokens, head_dim, math.ceil(tokens / BLOCK)


def _together(tokens, head_dim, bytes_each, all_heads):
    return min(all_heads, max(1, _CACHE_BYTES // (tokens * head_dim * bytes_each)))


def forward(teacher, student, scale, fill=None):
    """KL [B, H, N] and the statistics [4, B * H, N] that the Triton forward leaves, float32.

    ``fill``: what buffers hold before, to show what is not written.
    """
    all_heads, heads, tokens, head_dim, blocks = _checked(teacher, student)
    kl = torch.empty(teacher.shape[:3], device=teacher.device)
    stats = kl.new_empty(4, all_heads, tokens)
    if fill is not None:
        kl.fill_(fill), stats.fill_(fill)
    launch(
        "forward.cu", f"forward_{head_dim}", all_heads * blocks, 384, _shared("forward", head_dim),
        (TensorMap(teacher), TensorMap(student), kl, stats, tokens, heads, all_heads,
         _together(tokens, head_dim, 4, all_heads), scale * LOG2_E),
    )  # fmt: skip
    return kl, stats


def backward(teacher, student, stats, grad, scale, ordered=False, fill=None, parts=None):
    """Gradient of the student [B, H, N, D], bfloat16.

    ``ordered``: adds are made in order, so that two runs agree to the bit. ``parts`` is called with
    the name of each part after it was launched.
    """
    all_heads, heads, tokens, head_dim, blocks = _checked(teacher, student)
    tell = parts or (lambda name: None)
    sums = stats.new_zeros(all_heads, blocks * BLOCK, head_dim)
    own = torch.empty_like(sums) if ordered else None
    turns = None
    if ordered:
        turns = torch.zeros(all_heads * blocks * 2, dtype=torch.int32, device=stats.device)
    out = torch.empty(teacher.shape, dtype=teacher.dtype, device=teacher.device)
    if fill is not None:
        out.fill_(fill)
        if ordered:
            own.fill_(fill)
    tell("zeros")
    launch(
        "backward.cu", f"backward{'_ordered' * ordered}_{head_dim}", all_heads * blocks, 384,
        _shared("backward", head_dim),
        (TensorMap(teacher), TensorMap(student), stats, grad.contiguous(), sums, own, turns,
         tokens, heads, all_heads, _together(tokens, head_dim, 8, all_heads), scale * LOG2_E),
    )  # fmt: skip
    tell("backward")
    launch(
        "backward.cu", f"finish_{head_dim}", all_heads * blocks * 2, 128, 0,
        (sums, own, out, tokens, float(scale)),
    )  # fmt: skip
    tell("finish")
    return out


class Rows(torch.autograd.Function):
    """KL of every row [B, H, N]; the gradient reaches the student."""

    @staticmethod
    def forward(ctx, teacher, student, scale, ordered):
        kl, stats = forward(teacher, student, scale)
        ctx.save_for_backward(teacher, student, stats)
        ctx.scale, ctx.ordered = scale, ordered
        return kl

    @staticmethod
    def backward(ctx, grad):
        teacher, student, stats = ctx.saved_tensors
        gradient = backward(teacher, student, stats, grad, ctx.scale, ctx.ordered)
        return None, gradient, None, None


def relation_kl(teacher, student, ordered=False):
    """As ``linearard.ops.relation_kl.relation_kl`` with its defaults."""
    return Rows.apply(teacher, student, teacher.shape[-1] ** -0.5, ordered).mean()
