"""Which of PyTorch's attention kernels runs, and how its gradients arrive there.

cuDNN's attention takes about half of flash's time on Hopper, forward and backward. It builds a plan for
each shape and layout, and with PyTorch 2.11 looks that plan up without the strides of the output gradient:
gradients in another layout than those of the first call came out wrong (docs/LOG.md). So every output
gradient is handed to it in one layout. Where PyTorch's deterministic algorithms are on, it is not used: its
gradients may differ from call to call, and PyTorch would refuse it.

Sliding windows and packed documents go to flash attention, whose work falls with them, where it takes the
operands. No kernel is given repeated keys and values, and none a mask of all tokens by all tokens.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from linearard.capture.blocks import PLANLESS, Scores, attention_in_blocks
from linearard.capture.masks import Documents

_WITH_CUDNN = [SDPBackend.CUDNN_ATTENTION, *PLANLESS]
_HALF = (torch.bfloat16, torch.float16)
_ROUND = 64
_LONG = 4096  # tokens of a sequence whose attention takes longer than a plan


def padded_length(tokens: int) -> int:
    """How long to make a sequence of `tokens` by padding on the right: a long one gets the faster kernel."""
    return -(-tokens // _ROUND) * _ROUND if tokens >= _LONG else tokens


def preferred_backends(query: Tensor, attention_mask: Tensor | None) -> list[SDPBackend]:
    """Kernels in order of preference; the first that can run does.

    Args:
        query: `[batch, heads, tokens, head_dim]`.
        attention_mask: None where attention is causal or sees everything.
    """
    tokens, head_dim = query.shape[-2:]
    # A plan takes longer than most calls: only for the round lengths of windows, not for every prompt.
    round_length = tokens >= 512 and tokens % _ROUND == 0
    fits = attention_mask is None and head_dim <= 128 and round_length
    any_order = not torch.are_deterministic_algorithms_enabled()
    half = query.is_cuda and query.dtype in _HALF
    if half and fits and any_order and _cudnn_is_faster(query.device):
        return _WITH_CUDNN
    return PLANLESS


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


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    *,
    window: int | None = None,
    documents: Documents | None = None,
) -> Tensor:
    """Causal attention; `[batch, tokens, heads, head_dim]`.

    Args:
        query: `[batch, heads, tokens, head_dim]`.
        key, value: `[batch, kv_heads, tokens, head_dim]`.
        scaling: factor on the scores.
        window: how many tokens back a query sees, itself included, at least 1; None: all.
        documents: which keep to themselves; None: every sequence is one.
    """
    tokens = query.shape[2]
    if window is not None and window >= tokens:
        window = None
    if window is None and documents is None:
        return _whole_attention(query, key, value, scaling)
    if _flash_takes(query, key, value):
        return _flash_attention(query, key, value, scaling, window, documents)
    if documents is not None:
        return _by_document(query, key, value, scaling, window, documents)
    return attention_in_blocks(query, key, value, Scores(scaling), window=window)


def one_row(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor) -> Tensor:
    """Attention of one more token behind cached ones and padding; `[batch, 1, heads, head_dim]`.

    The heads of a group are rows of one head: a kernel that takes a mask would be given all cached keys and
    values repeated, in every layer for every token.

    Args:
        query: `[batch, heads, 1, head_dim]`.
        key, value: `[batch, kv_heads, tokens, head_dim]`.
        scaling: factor on the scores.
        mask: bool `[batch, 1, 1, tokens]`, True: is seen.
    """
    batch, heads, _, width = query.shape
    rows = query.reshape(batch, key.shape[1], heads // key.shape[1], width)
    with sdpa_kernel(PLANLESS, set_priority=True):
        output = functional.scaled_dot_product_attention(
            rows, key, value, attn_mask=mask, scale=scaling
        )
    return output.reshape(batch, 1, heads, value.shape[-1])


def _whole_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    heads, kv_heads = query.shape[1], key.shape[1]
    backends = preferred_backends(query, None)
    attend = functools.partial(
        functional.scaled_dot_product_attention, is_causal=True, scale=scaling
    )
    group = heads // kv_heads
    if group > 1 and _knows_no_groups(query, key, value):  # one head of every group at a time
        with sdpa_kernel(PLANLESS, set_priority=True):
            one_by_one = [attend(query[:, at::group], key, value) for at in range(group)]
        output = torch.stack(one_by_one, dim=2).flatten(1, 2)
        return output.transpose(1, 2).contiguous()
    with sdpa_kernel(backends, set_priority=True):
        output = attend(query, key, value, enable_gqa=group > 1)
    output = output.transpose(1, 2).contiguous()
    return with_contiguous_gradient(output) if backends is _WITH_CUDNN else output


def _knows_no_groups(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether PyTorch would write all scores down, as in float32 and for wide heads on small cards."""
    return query.is_cuda and not _flash_takes(query, key, value)


def _flash_takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether flash attention runs on this card with these operands, in both directions."""
    width = query.shape[-1]
    fits = width <= 256 and width % 8 == 0 and value.shape[-1] == width
    if not (query.is_cuda and query.dtype in _HALF and fits):
        return False
    grouped = query.shape[1] != key.shape[1]
    return can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, True, grouped))


def _flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    window: int | None,
    documents: Documents | None,
) -> Tensor:
    """PyTorch's flash attention itself: `scaled_dot_product_attention` cannot tell it of windows."""
    batch, heads, tokens, width = query.shape
    operands = [x.transpose(1, 2) for x in (query, key, value)]
    edges, longest = None, tokens
    if documents is not None:
        edges, longest = documents.edges(query.device), documents.longest
        operands = [x.flatten(0, 1) for x in operands]
    back = None if window is None else window - 1
    output = torch.ops.aten._flash_attention_forward(
        *operands,
        edges,
        edges,
        longest,
        longest,
        0.0,  # dropout
        window is None,  # causal without a window; with one, the window says so
        False,
        scale=scaling,
        window_size_left=back,
        window_size_right=None if window is None else 0,
    )[0]
    return output.view(batch, tokens, heads, width)


def _by_document(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    window: int | None,
    documents: Documents,
) -> Tensor:
    rows = []
    for at, lengths in enumerate(documents.lengths):
        parts = [x[at : at + 1].split(lengths, dim=2) for x in (query, key, value)]
        outputs = [
            causal_attention(*operands, scaling, window=window)
            for operands in zip(*parts, strict=True)
        ]
        rows.append(torch.cat(outputs, dim=1))
    return torch.cat(rows)
