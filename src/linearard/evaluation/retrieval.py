"""Retrieval from real text: needles of several kinds in held-out documents."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Any

from torch import Tensor

from linearard.errors import DataError
from linearard.evaluation.batching import Track
from linearard.evaluation.continuations import Continuation, Encoder
from linearard.evaluation.haystack import Haystack
from linearard.evaluation.prompts import Prompt, check_prompt, prompt_hits, shares
from linearard.evaluation.puzzles import PUZZLES, Puzzle
from linearard.model import ChunkedCausalLM


def retrieval_prompts(
    tokenizer: Any,
    documents: Sequence[Tensor],
    kinds: Sequence[str],
    lengths: Sequence[int],
    depths: Sequence[float],
    repeats: int,
    seed: int,
) -> dict[str, list[Prompt]]:
    """Prompts of every kind for every length and depth; the same for the same seed.

    Each prompt has its own span of the documents, of as many whole sentences as fit, and its own
    needles at sentence ends. It is decoded again to make sure that all needles are in it.

    Args:
        tokenizer: what the documents were encoded with.
        documents: held-out token ids, int64 [tokens] each.
        kinds: keys of `PUZZLES`.
        lengths: tokens of a prompt with its answer, at most.
        depths: where the needle that is asked for (or the first of them) stands, from 0 to 1.
        repeats: prompts of each kind, length and depth.
        seed: of spans and needles.

    Raises:
        DataError: a length is too short for needles and question, the documents are too short, or
            the tokenizer loses a needle.
    """
    if not (kinds and lengths and depths):
        return {}
    encode, haystack = Encoder(tokenizer), Haystack(tokenizer, documents)
    prompts: dict[str, list[Prompt]] = {kind: [] for kind in kinds}
    for kind, made in prompts.items():
        for length in lengths:
            for depth in depths:
                for repeat in range(repeats):
                    chance = random.Random(f"{seed}/{kind}/{length}/{depth}/{repeat}")
                    puzzle = PUZZLES[kind](chance, depth)
                    continuation = _hide(encode, haystack, puzzle, length, chance)
                    prompt = Prompt(length, depth, puzzle.answer, continuation)
                    needles = [sentence for _, sentence in puzzle.needles]
                    check_prompt(tokenizer, prompt, needles, "retrieval_lengths")
                    made.append(prompt)
    return prompts


def score_retrieval(
    lm: ChunkedCausalLM,
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    batch_size: int,
    seed: int,
    track: Track = iter,
) -> dict[str, Any]:
    """Share of prompts answered with every token greedy.

    Returns:
        What `shares` gives over all kinds together, and `tasks`: the same for each kind.
    """
    every = list(chain.from_iterable(prompts.values()))
    hits = prompt_hits(lm, every, batch_size=batch_size, track=track)
    left = iter(hits)
    tasks = {
        kind: shares(made, list(islice(left, len(made))), seed) for kind, made in prompts.items()
    }
    return {**shares(every, hits, seed), "tasks": tasks}


def _hide(
    encode: Encoder, haystack: Haystack, puzzle: Puzzle, length: int, chance: random.Random
) -> Continuation:
    """Introduction, a span with the needles in it, question and answer: at most `length` tokens."""
    head, tail = encode(puzzle.introduction), encode.ending(puzzle.question, puzzle.answer)
    needles = [(depth, encode.inside(sentence)) for depth, sentence in puzzle.needles]
    room = length - len(head) - len(tail.ids) - sum(len(ids) for _, ids in needles)
    if room < 0:
        raise DataError(
            expected=f"a retrieval length of at least {length - room} tokens",
            got=str(length),
            fix="Correct retrieval_lengths.",
        )
    text, places = haystack.cut(room, chance)
    ids, done = head, 0
    for depth, needle in sorted(needles, key=lambda item: item[0]):
        place = _nearest(places, depth * len(text))
        ids = ids + text[done:place] + needle
        done = place
    return tail.behind(ids + text[done:])


def _nearest(places: Sequence[int], wanted: float) -> int:
    """The one of ascending places that is nearest."""
    right = min(bisect_left(places, wanted), len(places) - 1)
    return min(places[max(right - 1, 0)], places[right], key=lambda place: abs(place - wanted))
