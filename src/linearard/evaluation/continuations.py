"""Log-probabilities of continuations, for tasks and for retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

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

    def continuation(self, context: str, text: str) -> Continuation:
        """`context`, a space and `text` as one text; scored from where it departs from `context`.

        Encoding the whole keeps the tokens a model was trained on where a tokenizer merges over
        the border.
        """
        return _departing(self(context), self(f"{context} {text}"))

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

    Only the logits of the scored positions are formed.
    """
    order = sorted(range(len(continuations)), key=lambda i: -len(continuations[i].ids))
    scores: dict[int, Score] = {}
    for batch in track(_length_batches([len(continuations[i].ids) for i in order], batch_size)):
        indices = order[batch]
        results = _score_batch(lm, [continuations[i] for i in indices])
        scores.update(zip(indices, results, strict=True))
    return [scores[i] for i in range(len(continuations))]


def _length_batches(lengths: list[int], batch_size: int) -> list[slice]:
    """Batches over descending lengths; the first of each is the longest."""
    found, start = [], 0
    while start < len(lengths):
        first = batches(len(lengths) - start, lengths[start], batch_size)[0]
        found.append(slice(start, start + first.stop))
        start += first.stop
    return found


def _score_batch(lm: ChunkedCausalLM, batch: list[Continuation]) -> list[Score]:
    rows = [torch.tensor(item.ids) for item in batch]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    # Nothing attends to what comes after it: padding on the right needs no mask.
    hidden = lm.hidden(input_ids)

    # The hidden state before a token predicts it.
    where = [(index, slice(item.start, len(item.ids))) for index, item in enumerate(batch)]
    states = torch.cat([hidden[i, span.start - 1 : span.stop - 1] for i, span in where])
    targets = torch.cat([input_ids[i, span] for i, span in where]).to(states.device)
    logprob, greedy = _score_rows(lm, states, targets)
    counts = [span.stop - span.start for _, span in where]
    return [
        Score(part.sum().item(), bool(hits.all()))
        for part, hits in zip(logprob.split(counts), greedy.split(counts), strict=True)
    ]


def _score_rows(lm: ChunkedCausalLM, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """On the CPU: float64 [rows] log-probability of the target, bool [rows] whether it is top-1."""
    logprob, greedy = [], []
    for rows in lm.chunks(len(targets)):
        logits = lm.logits(states[rows])
        greedy.append(logits.argmax(-1) == targets[rows])
        logprob.append(logits.log_softmax(-1).gather(1, targets[rows, None])[:, 0])
    return torch.cat(logprob).cpu().double(), torch.cat(greedy).cpu()
