"""Which of PyTorch's attention kernels runs, and how its gradients arrive there.

cuDNN's attention takes about half of flash's time on Hopper, forward and backward. It builds a plan for
each shape and layout, and with PyTorch 2.11 looks that plan up without the strides of the output gradient:
gradients in another layout than those of the first call came out wrong (docs/LOG.md). So every output
gradient is handed to it in one layout.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

_OTHERS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_WITH_CUDNN = [SDPBackend.CUDNN_ATTENTION, *_OTHERS]


def preferred_backends(query: Tensor, attention_mask: Tensor | None) -> list[SDPBackend]:
    """Kernels in order of preference; the first that can run does.

    Args:
        query: `[batch, heads, tokens, head_dim]`.
        attention_mask: None where attention is causal or sees everything.
    """
    tokens, head_dim = query.shape[-2:]
    # A plan takes longer than most calls: only for the round lengths of windows, not for every prompt.
    fits = attention_mask is None and head_dim <= 128 and tokens >= 512 and tokens % 64 == 0
    half = query.dtype in (torch.bfloat16, torch.float16)
    if query.is_cuda and half and fits and _cudnn_is_faster(query.device):
        return _WITH_CUDNN
    return _OTHERS


@functools.cache
def _cudnn_is_faster(device: torch.device) -> bool:
    return torch.backends.cudnn.is_available() and torch.cuda.get_device_capability(device) >= (
        9,
        0,
    )


def with_contiguous_gradient(output: Tensor) -> Tensor:
    """`output` itself, whose gradient reaches what made it in `output`'s contiguous layout."""
    return _ContiguousGradient.apply(output)


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        strides = [1]
        for size in reversed(gradient.shape[1:]):
            strides.insert(0, strides[0] * size)
        if not gradient.is_contiguous():
            gradient = gradient.contiguous()
        # PyTorch calls a tensor contiguous whatever the strides of its dimensions of size 1.
        return gradient.as_strided(gradient.shape, strides)
