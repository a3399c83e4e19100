"""Attention masks that are described instead of written down.

`transformers` makes one mask for a forward pass, `[batch, 1, tokens, tokens]`, and hands it to every layer.
At 131,072 tokens that is 16 GiB, and most attention kernels cannot take it at all. The mask function here
returns `None` where causality alone hides anything, and else an `UnwrittenMask`: it knows documents and a
sliding window where these are all there is to see, and writes a few rows of any other mask when they are
asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from linearard.architectures import architecture


@dataclass(frozen=True)
class Documents:
    """Sequences in which every token sees those of its own document alone, itself and earlier ones.

    Attributes:
        lengths: for each sequence of the batch, tokens of its documents, in order; they sum to its tokens.
    """

    lengths: tuple[tuple[int, ...], ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(max(lengths) for lengths in self.lengths)

    def edges(self, device: torch.device) -> Tensor:
        """Where documents begin and end in the batch laid end to end; int32 `[documents + 1]`."""
        flat = [0, *(length for lengths in self.lengths for length in lengths)]
        return torch.tensor(flat, device=device).cumsum(0, dtype=torch.int32)


@dataclass(frozen=True)
class Causal:
    """What a mask hides beside what comes later.

    Attributes:
        window: how many tokens back a query sees, itself included; None: all.
        documents: which it keeps apart; None: every sequence is one.
    """

    window: int | None
    documents: Documents | None


class UnwrittenMask:
    """A mask `[batch, 1, queries, keys]` of which no more exists than is asked for.

    Args:
        arguments: what the mask function was called with, beside lengths and offsets.
        sizes: batch, queries, keys.
        offsets: positions of the first query and of the first key.
    """

    def __init__(
        self, arguments: dict[str, Any], sizes: tuple[int, int, int], offsets: tuple[int, int]
    ) -> None:
        self._arguments, self._offsets = arguments, offsets
        self.batch, self.queries, self.keys = sizes

    def block(self, rows: range, columns: range) -> Tensor:
        """Some rows and columns of it; bool `[batch, 1, rows, columns]`, True: is seen."""
        from transformers.masking_utils import sdpa_mask

        return sdpa_mask(
            batch_size=self.batch,
            q_length=len(rows),
            kv_length=len(columns),
            q_offset=self._offsets[0] + rows.start,
            kv_offset=self._offsets[1] + columns.start,
            **self._arguments | {"allow_is_causal_skip": False, "local_size": None},
        )

    def whole(self) -> Tensor:
        """All of it: for those who can use nothing else."""
        return self.block(range(self.queries), range(self.keys))

    @cached_property
    def causal(self) -> Causal | None:
        """What it hides, if documents and a sliding window are all; None: look at its rows.

        Found by looking at a few places in every row, so it is known for every architecture. Padding before
        or behind the tokens is a document of its own: its rows mean nothing, and no other row sees it.
        """
        asked = self._arguments
        if self.queries != self.keys or any(self._offsets) or asked.get("use_vmap"):
            return None
        window, padding = self._window, asked.get("attention_mask")
        if padding is None and window is None and asked["allow_is_causal_skip"]:
            return Causal(None, None)
        if window == 1 or self.keys == 1:
            return None  # the token before, which tells where a document begins, is not in sight
        begins, agrees = self._boundaries
        if padding is not None:
            begins, one_run = _with_padding(begins, padding)
            agrees = agrees & one_run
        found = torch.cat([agrees.reshape(1, 1).expand(len(begins), 1), begins], dim=1).tolist()
        if not found[0][0]:
            return None
        lengths = tuple(_lengths(row[1:]) for row in found)
        apart = any(len(of_one) > 1 for of_one in lengths)
        return Causal(window, Documents(lengths) if apart else None)

    @property
    def is_asked_for(self) -> bool:
        """Whether the model wants the mask itself, as Doge does, which adds another to it.

        Packed texts forbid to leave the mask out, too; what is forbidden for no other reason is wanted.
        """
        asked = self._arguments
        if asked["allow_is_causal_skip"] or asked.get("use_vmap"):
            return False
        if self.queries != self.keys or any(self._offsets) or self._window == 1 or self.keys == 1:
            return True
        begins, agrees = self._boundaries
        return bool(agrees & ~begins[:, 1:].any())

    @property
    def _window(self) -> int | None:
        window = self._arguments.get("local_size")
        return None if window is None or window >= self.keys else window

    @cached_property
    def _boundaries(self) -> tuple[Tensor, Tensor]:
        """Where documents begin, bool `[batch, tokens]`, and whether they and a window are all that hides."""
        window, device, last = self._window, self._arguments["device"], self.keys - 1
        batch = torch.arange(self.batch, device=device)[:, None]
        rows = torch.arange(self.keys, device=device)[None].expand(self.batch, -1)

        def sees(row: Tensor, column: Tensor) -> Tensor:
            function: Callable[..., Tensor] = self._arguments["mask_function"]
            return function(batch, torch.zeros_like(batch), row, column.clamp(0, last))

        begins = ~sees(rows, rows - 1) | (rows == 0)
        first = torch.where(begins, rows, 0).cummax(dim=1).values
        nearest = first if window is None else torch.maximum(first, rows - window + 1)
        agrees = sees(rows, nearest) & sees(rows, rows)
        agrees &= (nearest == 0) | ~sees(rows, nearest - 1)
        agrees &= (rows == last) | ~sees(rows, rows + 1)
        return begins, agrees.all()


def compact_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    **arguments: Any,
) -> Tensor | UnwrittenMask | None:
    """A mask function of `transformers` (`AttentionMaskInterface`) for attention that takes `UnwrittenMask`.

    Args:
        batch_size, q_length, kv_length: sizes of the mask.
        q_offset, kv_offset: positions of the first query and of the first key.
        arguments: what `transformers.masking_utils.sdpa_mask` takes beside these.
    """
    fixed = isinstance(q_offset, int) and isinstance(kv_offset, int)  # no cache of a fixed size
    config = arguments.get("config")
    known = architecture(getattr(config, "model_type", None))
    reads = known.adds_to_mask or hasattr(config, "index_topk")  # an indexer chooses keys
    if q_length == 1 or reads or not fixed:
        from transformers.masking_utils import sdpa_mask

        return sdpa_mask(
            batch_size, q_length, kv_length, q_offset=q_offset, kv_offset=kv_offset, **arguments
        )
    arguments = {"allow_is_causal_skip": True, "device": "cpu"} | arguments
    sizes = (batch_size, q_length, kv_length)
    mask = UnwrittenMask(arguments, sizes, (q_offset, kv_offset))
    if mask.is_asked_for:
        return mask.whole()
    return None if mask.causal == Causal(None, None) else mask


def _with_padding(begins: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Documents that also begin where padding does or ends; and whether no padding stands within tokens."""
    valid = padding[:, : begins.shape[1]].bool()
    turns = torch.zeros_like(begins)
    turns[:, 1:] = valid[:, 1:] != valid[:, :-1]
    one_run = (turns & valid).sum(1) + valid[:, 0] <= 1
    return begins | turns, one_run.all()


def _lengths(begins: list[bool]) -> tuple[int, ...]:
    starts = [at for at, begin in enumerate(begins) if begin]
    return tuple(b - a for a, b in zip(starts, [*starts[1:], len(begins)], strict=True))
