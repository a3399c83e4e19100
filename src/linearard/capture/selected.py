"""Attention to the keys that a layer's indexer has chosen (DeepSeek V3.2 and relatives, MiniMax M3).

Under names of attention that they know, these models write the choice into the mask; under every other one
they hand it over as an argument, for kernels that read no more than the chosen keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from linearard.capture.masks import UnwrittenMask


def with_choice(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | UnwrittenMask | None,
    options: dict[str, Any],
) -> Tensor | UnwrittenMask | None:
    """The mask without the keys that were not chosen; as it is where nothing was.

    Args:
        module: an attention module.
        query, key: `[batch, heads, tokens, head_dim]`.
        mask: bool (True: is seen) or additive.
        options: other arguments of the attention function; those that hold the choice are taken out.
    """
    chosen = options.pop("indices", None)  # [batch, queries, chosen]
    blocks = options.pop("block_indices", None)  # [batch, index heads, queries, chosen], -1: none
    if chosen is None and blocks is None:
        return mask
    written = mask.whole() if isinstance(mask, UnwrittenMask) else mask
    queries, keys = query.shape[2], key.shape[2]
    positions = torch.arange(keys - queries, keys, device=query.device)
    if blocks is not None:
        given = options.get("position_ids")
        positions = (positions[None] if given is None else given).expand(len(query), -1)
        return module.indexer.build_block_mask(
            blocks, written, keys, query.dtype, query.device, positions
        )
    seen = chosen.new_zeros((len(query), queries, keys), dtype=torch.bool)
    seen = seen.scatter(-1, chosen.long(), True)[:, None]
    if written is None:
        written = positions[:, None] >= torch.arange(keys, device=query.device)
    if written.dtype == torch.bool:
        return written & seen
    return written.masked_fill(~seen, torch.finfo(written.dtype).min)
