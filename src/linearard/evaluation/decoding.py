"""Greedy continuations of prompts of any lengths: read once each, then continued together.

Every prompt is read without padding, and so without a mask of all tokens by all tokens. Its keys and values
are then laid beside those of others, the shorter ones behind padding, and all go on together, a token at a
time, in room that was taken once: nothing is copied as it grows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from linearard.evaluation.batching import Track, batches
from linearard.model import ChunkedCausalLM, has_whole_cache, plain_generation

#: What the cached keys and values of one batch may take: of what is free on a GPU, and on a CPU.
_GPU_SHARE, _CPU_BYTES = 0.4, 2**30
_MOST_ROWS = 128

Stop = Callable[[int, list[int]], bool]


@torch.no_grad()
def continue_greedily(
    lm: ChunkedCausalLM,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    *,
    ends: Collection[int] = (),
    stop: Stop | None = None,
    track: Track = iter,
) -> list[list[int]]:
    """What the model says next, in the view as it is now.

    Args:
        lm: the model.
        prompts: token ids, at least one each. None is cut, however long.
        limits: most tokens to generate, of each prompt.
        ends: ids that end a continuation and are no part of it.
        stop: asked with the index of a prompt and its continuation so far, after every token; True ends it.
        track: wraps the batches to show progress.

    Returns:
        The continuation of each prompt, token ids.
    """
    found: dict[int, list[int]] = {}
    with plain_generation(lm.model) as model:
        for rows in track(list(_batches(lm, prompts, limits))):
            batch = _Batch(rows, limits, frozenset(ends), stop)
            if has_whole_cache(model):
                _continue(lm, [prompts[row] for row in rows], batch)
            else:
                _one_by_one(model, prompts, batch)
            found.update(batch.found)
    return [found[index] for index in range(len(prompts))]


class _Batch:
    """Continuations in the making."""

    def __init__(
        self, rows: Sequence[int], limits: Sequence[int], ends: Collection[int], stop: Stop | None
    ) -> None:
        self.rows, self.ends = rows, ends
        self.found: dict[int, list[int]] = {row: [] for row in rows}
        self._limits, self._stop = limits, stop
        self._open = {row for row in rows if limits[row] > 0}

    @property
    def longest(self) -> int:
        """Most tokens that one of them may have."""
        return max(self._limits[row] for row in self.rows)

    def add(self, tokens: Sequence[int]) -> bool:
        """One more token for each row; whether any wants another."""
        for row, token in zip(self.rows, tokens, strict=True):
            if row not in self._open:
                continue
            said = self.found[row]
            if token in self.ends:
                self._open.discard(row)
                continue
            said.append(token)
            if len(said) >= self._limits[row] or (self._stop and self._stop(row, said)):
                self._open.discard(row)
        return bool(self._open)


def _batches(
    lm: ChunkedCausalLM, prompts: Sequence[Sequence[int]], limits: Sequence[int]
) -> Iterator[list[int]]:
    """Indices of the prompts that go on together: longest first, as many as their caches have room."""
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
    room = _room(lm.device) // _bytes_of_a_token(lm.model)
    batch: list[int] = []
    for row in order:
        most = max([limits[other] for other in [*batch, row]])
        tokens = (len(prompts[(batch or [row])[0]]) + most) * (len(batch) + 1)
        if batch and (tokens > room or len(batch) == _MOST_ROWS):
            yield batch
            batch = []
        batch = [*batch, row]
    if batch:
        yield batch


def _room(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_BYTES
    torch.cuda.empty_cache()
    return int(_GPU_SHARE * torch.cuda.mem_get_info(device)[0])


def _bytes_of_a_token(model: Any) -> int:
    """Of the keys and values of one token, in all layers; at least what most architectures keep."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize


def _continue(lm: ChunkedCausalLM, prompts: Sequence[Sequence[int]], batch: _Batch) -> None:
    """Read the prompts, longest first, and let them go on together."""
    from transformers import Cache

    lengths = [len(prompt) for prompt in prompts]
    capacity = lengths[0] + batch.longest
    layers: list[Any] = []
    states = []  # the last hidden state of each prompt, [rows, hidden]
    start = 0
    for length, same in itertools.groupby(prompts, key=len):
        ids = torch.tensor(list(same))
        for part in batches(len(ids), length, len(ids)):
            cache, last = lm.begin(ids[part])
            if not layers:
                layers = [
                    _room_for(layer, len(prompts), capacity, used=length) for layer in cache.layers
                ]
            rows = slice(start, start + len(last))
            for room, layer in zip(layers, cache.layers, strict=True):
                room.put(rows, slice(lengths[0] - length, lengths[0]), layer)
            states.append(last)
            start = rows.stop
            del cache
    cache, steps = Cache(layers=layers), torch.tensor(lengths, device=lm.device)
    padding = lengths[0] - steps
    seen = torch.arange(capacity, device=lm.device) >= padding[:, None]
    padded = bool(padding.any())
    hidden = torch.cat(states)
    for step in range(batch.longest):
        tokens = torch.cat([lm.logits(hidden[rows]).argmax(-1) for rows in lm.chunks(len(hidden))])
        if not batch.add(tokens.tolist()) or step == batch.longest - 1:
            return
        mask = seen[:, : lengths[0] + step + 1].long() if padded else None
        hidden = lm.go_on(tokens[:, None], steps[:, None] + step, cache, mask)


def _room_for(layer: Any, rows: int, capacity: int, *, used: int) -> Any:
    """Room for the keys and values of all rows in one layer, behind the interface of a cache's layer."""
    from transformers.cache_utils import DynamicLayer

    class Room(DynamicLayer):
        """Keys and values `[rows, kv_heads, capacity, head_dim]`; those of `used` tokens are shown."""

        def __init__(self) -> None:
            super().__init__()
            self._all = [
                states.new_zeros(rows, states.shape[1], capacity, states.shape[3])
                for states in (layer.keys, layer.values)
            ]
            self.lazy_initialization(layer.keys, layer.values)
            self._show(used)

        def put(self, rows: slice, tokens: slice, read: Any) -> None:
            """Lay what one reading left, but what may be behind its tokens, in their place."""
            for room, states in zip(self._all, (read.keys, read.values), strict=True):
                room[rows, :, tokens] = states[:, :, : tokens.stop - tokens.start]

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            """Those of further tokens; all so far."""
            used = self.keys.shape[2]
            for room, states in zip(self._all, (key_states, value_states), strict=True):
                room[:, :, used : used + states.shape[2]] = states
            self._show(used + key_states.shape[2])
            return self.keys, self.values

        def _show(self, used: int) -> None:
            self.keys, self.values = (room[:, :, :used] for room in self._all)

    return Room()


def _one_by_one(model: Any, prompts: Sequence[Sequence[int]], batch: _Batch) -> None:
    """Through the model's own `generate`, for layers whose state cannot be laid beside others'."""
    for row in batch.rows:
        ids = torch.tensor([prompts[row]], device=model.device)
        alone = _Batch([row], batch._limits, batch.ends, batch._stop)
        said = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max(alone.longest, 1),
            do_sample=False,
            use_cache=True,
            eos_token_id=sorted(batch.ends) or None,
            pad_token_id=0,
        )[0, ids.shape[1] :].tolist()
        for token in said:
            if not alone.add([token]):
                break
        batch.found[row] = alone.found[row]
