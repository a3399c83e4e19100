"""Attention a block of rows at a time: for masks, caps and cards that no fused kernel takes as a whole.

Nothing grows with the square of the sequence. The backward pass computes every block again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from linearard.capture.masks import UnwrittenMask

#: Kernels that need no plan for each shape, in order of preference.
PLANLESS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
#: Scores of a block, over all sequences and heads.
_CPU_ELEMENTS, _GPU_ELEMENTS = 2**20, 2**25
_LEAST_ROWS, _MOST_ROWS = 64, 1024


@dataclass(frozen=True)
class Scores:
    """How a query's scores become weights.

    Attributes:
        scaling: factor on the products of queries and keys.
        softcap: scores are `softcap * tanh(scores / softcap)` (Gemma 2); None: as they are.
    """

    scaling: float
    softcap: float | None = None


@dataclass(frozen=True)
class _Block:
    """Some queries, all keys that any of them sees, and which sees what: bool, `[..., rows, columns]`."""

    rows: range
    columns: range
    mask: Callable[[], Tensor]


def attention_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scores: Scores,
    *,
    window: int | None = None,
    mask: UnwrittenMask | Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of any mask; `[batch, tokens, heads, head_dim]`.

    A row that sees nothing, which only padding does, gives numbers that mean nothing.

    Args:
        query: `[batch, heads, tokens, head_dim]`.
        key, value: `[batch, kv_heads, keys, head_dim]`; as many keys as tokens where there is no mask.
        scores: scaling and cap.
        window: without a mask: how many tokens back a query sees, itself included; None: all.
        mask: what is seen; None: what is causal. A written one, `[batch or 1, heads or 1, tokens, keys]`, is
            bool, or 0 where a key is seen and hugely negative elsewhere.
        sinks: `[heads]`, a score to each head beside those of the keys, which nothing is read for (gpt-oss).
    """
    batch, heads, _, _ = query.shape
    most = (_GPU_ELEMENTS if query.is_cuda else _CPU_ELEMENTS) // (batch * heads)
    if mask is None:
        blocks = _causal_blocks(query.shape[2], window, most, query.device)
    else:
        blocks = _masked_blocks(mask, query.shape[2], key.shape[2], most)
    return _InBlocks.apply(query, key, value, sinks, scores, list(blocks))


def _causal_blocks(
    tokens: int, window: int | None, most: int, device: torch.device
) -> Iterator[_Block]:
    wide = tokens if window is None else min(window, tokens)
    height = max(_LEAST_ROWS, min(wide, _MOST_ROWS, most // (2 * wide)))
    masks: dict[tuple[int, int], Tensor] = {}

    def written(rows: range, columns: range) -> Tensor:
        sizes = (len(rows), len(columns))
        if sizes not in masks:  # the same in all blocks but the first ones and the last
            masks.clear()
            positions = torch.arange(rows.start, rows.stop, device=device)[:, None]
            distance = positions - torch.arange(columns.start, columns.stop, device=device)
            masks[sizes] = (distance >= 0) & (distance < wide)
        return masks[sizes]

    for start in range(0, tokens, height):
        rows = range(start, min(start + height, tokens))
        columns = range(max(0, start - wide + 1), rows.stop)
        yield _Block(rows, columns, lambda rows=rows, columns=columns: written(rows, columns))


def _masked_blocks(
    mask: UnwrittenMask | Tensor, tokens: int, keys: int, most: int
) -> Iterator[_Block]:
    columns = range(keys)

    def written(rows: range) -> Tensor:
        if isinstance(mask, UnwrittenMask):
            return mask.block(rows, columns)
        some = mask[..., rows.start : rows.stop, :keys]
        return some if some.dtype == torch.bool else some > torch.finfo(some.dtype).min / 2

    height = max(1, min(_MOST_ROWS, most // keys))
    for start in range(0, tokens, height):
        rows = range(start, min(start + height, tokens))
        yield _Block(rows, columns, lambda rows=rows: written(rows))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, scores: Scores, seen: Tensor
) -> Tensor:
    """One block; `[batch, heads, rows, head_dim]`.

    Args:
        query: `[batch, heads, rows, head_dim]`.
        key, value: `[batch, kv_heads, columns, head_dim]`.
        seen: bool, `[..., rows, columns]`.
    """
    batch, heads, rows, width = query.shape
    kv_heads, columns = key.shape[1:3]
    group = heads // kv_heads
    seen = seen | ~seen.any(-1, keepdim=True)
    if seen.dim() == 2:
        seen = seen[None, None]
    if seen.shape[1] == 1:  # the heads of a group are more rows of one head: no key is repeated
        query = query.reshape(batch, kv_heads, group * rows, width)
        seen = seen.expand(-1, group, -1, -1).reshape(-1, 1, group * rows, columns)
    else:
        key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    if scores.softcap is None and sinks is None:
        with sdpa_kernel(PLANLESS, set_priority=True):
            output = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=seen, scale=scores.scaling
            )
        return output.reshape(batch, heads, rows, -1)
    logits = (query @ key.mT).float() * scores.scaling
    if scores.softcap is not None:
        logits = scores.softcap * torch.tanh(logits / scores.softcap)
    logits = logits.masked_fill(~seen, -torch.inf)
    total = logits.logsumexp(-1, keepdim=True)
    if sinks is not None:
        beside = sinks.float().view(1, heads, 1, 1).expand(-1, -1, rows, -1)
        total = torch.logaddexp(total, beside.reshape(1, *total.shape[1:]))
    weights = (logits - total).exp().to(value.dtype)
    return (weights @ value).reshape(batch, heads, rows, -1)


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        scores: Scores,
        blocks: list[_Block],
    ) -> Tensor:
        ctx.scores, ctx.blocks = scores, blocks
        ctx.save_for_backward(query, key, value, sinks)
        batch, heads, tokens, _ = query.shape
        output = query.new_empty(batch, tokens, heads, value.shape[-1])
        for block in blocks:
            rows, columns = _slices(block)
            parts = (query[:, :, rows], key[:, :, columns], value[:, :, columns])
            some = _attend(*parts, sinks, scores, block.mask())
            output[:, rows] = some.transpose(1, 2)
        return output

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks = ctx.saved_tensors
        # Several blocks add to a key: in half precision their sum would lose more than one product does.
        precise = torch.promote_types(key.dtype, torch.float32)
        found_query = torch.empty_like(query)
        found_key, found_value = (torch.zeros_like(x, dtype=precise) for x in (key, value))
        found_sinks = None if sinks is None else torch.zeros_like(sinks, dtype=precise)
        for block in ctx.blocks:
            rows, columns = _slices(block)
            parts = [query[:, :, rows], key[:, :, columns], value[:, :, columns]]
            parts += [] if sinks is None else [sinks]
            parts = [part.detach().requires_grad_() for part in parts]
            with torch.enable_grad():
                beside = None if sinks is None else parts[3]
                output = _attend(*parts[:3], beside, ctx.scores, block.mask())
            found = torch.autograd.grad(output, parts, slope[:, rows].transpose(1, 2))
            found_query[:, :, rows] = found[0]
            found_key[:, :, columns] += found[1]
            found_value[:, :, columns] += found[2]
            if found_sinks is not None:
                found_sinks += found[3]
        sinks_slope = None if sinks is None else found_sinks.to(sinks.dtype)
        keys = (found_key.to(key.dtype), found_value.to(value.dtype))
        return found_query, *keys, sinks_slope, None, None


def _slices(block: _Block) -> tuple[slice, slice]:
    return slice(block.rows.start, block.rows.stop), slice(block.columns.start, block.columns.stop)
