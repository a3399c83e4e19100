"""Log-probabilities of continuations, for tasks and for retrieval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linearard.capture import padded_length
from linearard.data import beginning
from linearard.evaluation.batching import Track, batches
from linearard.model import ChunkedCausalLM


@dataclass(frozen=True)
class Continuation:
    """A token sequence of which the tokens from `start` on are scored; `start` is at least 1."""

    ids: list[int]
    start: int

    def behind(self, ids: list[int]) -> Continuation:
        """The same continuation behind further tokens."""
        return Continuation(ids + self.ids, len(ids) + self.start)


class Score(NamedTuple):
    """The summed log-probability in nats, and whether every token was the most likely one."""

    logprob: float
    greedy: bool


class Encoder:
    """Text to token ids for any tokenizer: with all that it puts before a text, never with an end.

    Attributes:
        prefix: what the tokenizer puts before a text: no id, one or several.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.prefix: list[int] = beginning(tokenizer)

    def __call__(self, text: str) -> list[int]:
        """Token ids of `text`, after what the tokenizer puts before one."""
        return self.prefix + self._plain(text)

    def inside(self, text: str) -> list[int]:
        """Token ids of a space and `text` as they stand behind a finished sentence.

        A long prompt is put together from such pieces: each is encoded once. The ids are those of
        the whole text wherever no token reaches over the end of a sentence.
        """
        before, both = self._plain("."), self._plain(f". {text}")
        # Some tokenizers put a space of their own before a text, so it is not encoded alone.
        whole = both[: len(before)] == before
        return both[len(before) :] if whole else self._plain(f" {text}")

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def continuations(self, pairs: Iterable[tuple[str, str]]) -> list[Continuation]:
        """Of each pair `context`, a space and `text` as one text; scored from where `context` ends.

        Encoding the whole keeps the tokens a model was trained on where a tokenizer merges over
        the border. All are encoded in one call, each text once.
        """
        texts = [(context, f"{context} {text}") for context, text in pairs]
        different = list(dict.fromkeys(chain.from_iterable(texts)))
        if not different:
            return []
        found = self._tokenizer(different, add_special_tokens=False, verbose=False).input_ids
        ids = {text: self.prefix + plain for text, plain in zip(different, found, strict=True)}
        return [_departing(ids[alone], ids[whole]) for alone, whole in texts]

    def ending(self, context: str, text: str) -> Continuation:
        """The same for the end of a longer prompt: to be put behind at least one token."""
        return _departing(self.inside(context), self.inside(f"{context} {text}"))


def _departing(alone: list[int], whole: list[int]) -> Continuation:
    # The last token is always scored, the first of a text never can be.
    limit = min(len(alone), len(whole) - 1)
    start = next((i for i in range(limit) if alone[i] != whole[i]), limit)
    return Continuation(whole, start)


@torch.no_grad()
def score_continuations(
    lm: ChunkedCausalLM,
    continuations: Sequence[Continuation],
    *,
    batch_size: int,
    track: Track = iter,
) -> list[Score]:
    """Score every continuation in one forward pass each, batched by length, padded on the right.

    Only the logits of the scored positions are formed. A GPU is waited for once, at the end.
    """
    order = sorted(range(len(continuations)), key=lambda i: -len(continuations[i].ids))
    ordered = [continuations[i] for i in order]
    parts = [
        _score_batch(lm, ordered[batch])
        for batch in track(_length_batches([len(item.ids) for item in ordered], batch_size))
    ]
    if not parts:
        return []
    logprobs, greedy = (torch.cat(part) for part in zip(*parts, strict=True))
    logprobs, greedy = logprobs.double().tolist(), greedy.tolist()
    scores: dict[int, Score] = {}
    first = 0
    for index, item in zip(order, ordered, strict=True):
        span = slice(first, first + len(item.ids) - item.start)
        scores[index] = Score(math.fsum(logprobs[span]), all(greedy[span]))
        first = span.stop
    return [scores[i] for i in range(len(continuations))]


def _length_batches(lengths: list[int], batch_size: int) -> list[slice]:
    """Batches over descending lengths; the first of each is the longest."""
    found, start = [], 0
    while start < len(lengths):
        first = batches(len(lengths) - start, lengths[start], batch_size)[0]
        found.append(slice(start, start + first.stop))
        start += first.stop
    return found


def _score_batch(lm: ChunkedCausalLM, batch: list[Continuation]) -> tuple[Tensor, Tensor]:
    """Of all scored tokens one after another: float32 log-probability, bool whether it is top-1."""
    # Nothing attends to what comes after it: padding on the right needs no mask.
    length = padded_length(len(batch[0].ids))
    input_ids = torch.tensor([item.ids + [0] * (length - len(item.ids)) for item in batch])
    # The hidden state before a token predicts it.
    spans = [(row * length - 1, item) for row, item in enumerate(batch)]
    before = [torch.arange(at + item.start, at + len(item.ids)) for at, item in spans]
    where = torch.cat(before)
    targets = _sent(input_ids.flatten()[where + 1], lm.device)
    hidden = lm.hidden(_sent(input_ids, lm.device)).flatten(0, 1)
    return _score_rows(lm, hidden[_sent(where, lm.device)], targets)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; a GPU's queue is not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _score_rows(lm: ChunkedCausalLM, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 [rows] log-probability of the target, bool [rows] whether it is top-1."""
    logprob, greedy = [], []
    for rows in lm.chunks(len(targets)):
        logits = lm.logits(states[rows])
        greedy.append(logits.argmax(-1) == targets[rows])
        logprob.append(logits.log_softmax(-1).gather(1, targets[rows, None])[:, 0])
    return torch.cat(logprob), torch.cat(greedy)
