"""Log-probabilities of continuations, for tasks and for retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linearard.evaluation.batching import Track, batches
from linearard.model import ChunkedCausalLM


@dataclass(frozen=True)
class Continuation:
    """A token sequence of which the tokens from `start` on are scored; `start` is at least 1."""

    ids: list[int]
    start: int


class Score(NamedTuple):
    """The summed log-probability in nats, and whether every token was the most likely one."""

    logprob: float
    greedy: bool


class Encoder:
    """Text to token ids for any tokenizer: with its start-of-text token, never with an end."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        bos, plain = tokenizer.bos_token_id, tokenizer("a").input_ids
        self._prefix = [bos] if bos is not None and plain[:1] == [bos] else []

    def __call__(self, text: str) -> list[int]:
        """Token ids of `text`, after the start-of-text token if the tokenizer uses one."""
        encoded = self._tokenizer(text, add_special_tokens=False, verbose=False)
        return self._prefix + encoded.input_ids

    def continuation(self, context: str, text: str) -> Continuation:
        """`context`, a space and `text` as one text; scored from where it departs from `context`.

        Encoding the whole keeps the tokens a model was trained on where a tokenizer merges over
        the border.
        """
        alone, whole = self(context), self(f"{context} {text}")
        # The last token is always scored, the first never can be.
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
