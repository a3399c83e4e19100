"""Which of PyTorch's attention kernels runs, and how its gradients arrive there.

cuDNN's attention takes about half of flash's time on Hopper, forward and backward. It builds a plan for
each shape and layout, and with PyTorch 2.11 looks that plan up without the strides of the output gradient:
gradients in another layout than those of the first call came out wrong (docs/LOG.md). So every output
gradient is handed to it in one layout.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
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


def windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, window: int, scaling: float
) -> Tensor:
    """Causal attention that sees `window` tokens back, itself included; `[batch, tokens, heads, head_dim]`.

    Args:
        query: `[batch, heads, tokens, head_dim]`.
        key, value: `[batch, kv_heads, tokens, head_dim]`.
        window: at least 1.
        scaling: factor on the scores.
    """
    batch, heads, tokens, width = query.shape
    group = heads // key.shape[1]
    half = query.dtype in (torch.bfloat16, torch.float16)
    options = _flash_options()
    if not (query.is_cuda and half and width <= 256 and {"window_size", "scale"} <= options):
        mask = _band(tokens, window, query.device)
        if group > 1:  # grouped heads and a mask exclude each other in most kernels
            key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
        output = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling
        )
        return output.transpose(1, 2).contiguous()
    from torch.nn.attention.varlen import varlen_attn

    grouped = {}
    if group > 1:
        if "enable_gqa" in options:
            grouped = {"enable_gqa": True}
        else:
            key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    packed = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    edges = torch.arange(0, (batch + 1) * tokens, tokens, dtype=torch.int32, device=query.device)
    output = varlen_attn(
        *packed, edges, edges, tokens, tokens, scale=scaling, window_size=(window - 1, 0), **grouped
    )
    return output.view(batch, tokens, heads, width)


@functools.cache
def _flash_options() -> frozenset[str]:
    """What PyTorch's variable-length attention can be told, which grew from version to version."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def _band(tokens: int, window: int, device: torch.device) -> Tensor:
    # While a graph is recorded nothing is computed: what is made then may not outlive it in the cache.
    recording = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    return (_kept_band.__wrapped__ if recording else _kept_band)(tokens, window, device)


@functools.lru_cache(maxsize=2)
def _kept_band(tokens: int, window: int, device: torch.device) -> Tensor:
    """Bool `[tokens, tokens]`: what a row sees."""
    rows = torch.arange(tokens, device=device)
    distance = rows[:, None] - rows
    return (distance >= 0) & (distance < window)
