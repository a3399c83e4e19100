"""Pass-key retrieval: a number hidden in prose, asked for at the end.

The form follows "Landmark Attention" (arXiv 2305.16300); the prose is this project's own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from linearard.errors import DataError
from linearard.evaluation.batching import Track
from linearard.evaluation.continuations import Continuation, Encoder, score_continuations
from linearard.evaluation.statistics import bootstrap_interval, mean
from linearard.model import ChunkedCausalLM

INTRODUCTION = "Somewhere in the following text a pass key is hidden. Find it and remember it."
QUESTION = "What is the pass key? The pass key is"
FILLER = (
    "The ferry left the harbour a little after seven.",
    "Two gulls followed it as far as the lighthouse.",
    "Nobody on the deck spoke much that morning.",
    "The baker's shutters were still closed.",
    "A cart of apples stood by the wall of the old mill.",
    "Rain had fallen in the night and the road was soft.",
    "The clock in the square had stopped at noon some years ago.",
    "An old man was mending a net on the steps.",
    "His dog slept under the bench with one ear raised.",
    "The river was low, and children crossed it on the stones.",
    "Smoke rose slowly from the chimneys on the hill.",
    "In the garden the first pears were turning yellow.",
    "Someone had left a lamp burning in the window of the school.",
    "The post came late and there was little of it.",
    "A woman carried two baskets of bread up the lane.",
    "The wind turned to the north before evening.",
    "They talked about the price of wool and the length of the winter.",
    "The path along the cliff was closed to riders.",
    "From the tower one could see three villages and the sea.",
    "The carpenter planed a board and whistled.",
    "Later the market filled and the noise grew.",
    "A boy counted the wagons as they came over the bridge.",
    "The mill wheel turned, and the water went on to the fields.",
    "At dusk the lamps were lit one after another.",
)


@dataclass(frozen=True)
class PasskeyPrompt:
    """One prompt with its answer at the end.

    Attributes:
        length: the length asked for, in tokens; prompt and answer have no more.
        depth: where the needle stands, 0 at the start and 1 at the end.
        key: the five digits.
        continuation: the tokens; those of the answer are scored.
    """

    length: int
    depth: float
    key: str
    continuation: Continuation


def passkey_prompts(
    tokenizer: Any, lengths: Sequence[int], depths: Sequence[float], repeats: int, seed: int
) -> list[PasskeyPrompt]:
    """Prompts for every length and depth; the same for the same seed.

    Every prompt holds as many whole sentences of filler as fit, and is decoded again to make sure
    that the needle is among its tokens.

    Raises:
        DataError: a length is too short for needle and question, or the tokenizer loses the key.
    """
    encode = Encoder(tokenizer)
    prompts = []
    for length in lengths:
        for depth in depths:
            for repeat in range(repeats):
                chance = random.Random(f"{seed}/{length}/{depth}/{repeat}")
                key = str(chance.randint(10_000, 99_999))
                continuation = _fill(encode, length, depth, key, chance)
                _check_needle(tokenizer, continuation, key, length)
                prompts.append(PasskeyPrompt(length, depth, key, continuation))
    return prompts


def score_passkey(
    lm: ChunkedCausalLM,
    prompts: Sequence[PasskeyPrompt],
    *,
    batch_size: int,
    seed: int,
    track: Track = iter,
) -> dict[str, Any]:
    """Share of prompts whose answer is, token by token, the model's greedy choice.

    One forward pass per prompt with the answer in place: greedy decoding gives the key exactly
    where every answer token is the most likely one after those before it.

    Returns:
        `accuracy`, `ci95`, `prompts`, and `cells`: a list of
        `{"length", "depth", "accuracy", "prompts"}`.
    """
    scores = score_continuations(
        lm, [prompt.continuation for prompt in prompts], batch_size=batch_size, track=track
    )
    hits = [float(score.greedy) for score in scores]
    cells: dict[tuple[int, float], list[float]] = {}
    for prompt, hit in zip(prompts, hits, strict=True):
        cells.setdefault((prompt.length, prompt.depth), []).append(hit)
    return {
        "accuracy": mean(hits),
        "ci95": bootstrap_interval(hits, seed),
        "prompts": len(hits),
        "cells": [
            {"length": length, "depth": depth, "accuracy": mean(cell), "prompts": len(cell)}
            for (length, depth), cell in cells.items()
        ],
    }


def _needle(key: str) -> str:
    return f"The pass key is {key}. Remember it. {key} is the pass key."


def _fill(
    encode: Encoder, length: int, depth: float, key: str, chance: random.Random
) -> Continuation:
    """The longest prompt of whole sentences that has at most `length` tokens."""

    def prompt(count: int) -> tuple[str, int]:
        """A prompt of `count` sentences, and its tokens with the answer."""
        before = round(depth * count)
        parts = [
            INTRODUCTION,
            *sentences[:before],
            _needle(key),
            *sentences[before:count],
            QUESTION,
        ]
        text = " ".join(parts)
        return text, len(encode(f"{text} {key}"))

    per_sentence = len(encode(" ".join(FILLER))) / len(FILLER)
    count = int(length / per_sentence)
    sentences: list[str] = []
    while len(sentences) < 2 * count + len(FILLER):
        sentences += chance.sample(FILLER, len(FILLER))
    while count and (excess := prompt(count)[1] - length) > 0:
        count -= min(count, max(1, int(excess / per_sentence)))
    while prompt(count + 1)[1] <= length:
        count += 1
    text, tokens = prompt(count)
    if tokens > length:
        raise DataError(
            expected=f"a pass-key length of at least {tokens} tokens",
            got=str(length),
            fix="Correct passkey_lengths.",
        )
    return encode.continuation(text, key)


def _check_needle(tokenizer: Any, continuation: Continuation, key: str, length: int) -> None:
    """Decode the prompt; spaces do not count, for some tokenizers put their own."""
    prompt, answer = (
        "".join(tokenizer.decode(ids).split())
        for ids in (
            continuation.ids[: continuation.start],
            continuation.ids[continuation.start :],
        )
    )
    if "".join(_needle(key).split()) not in prompt or not answer.endswith(key):
        raise DataError(
            expected=f"a tokenizer that keeps the pass key {key} at {length} tokens",
            got=f"{type(tokenizer).__name__}, which loses it",
            fix="Switch pass-key retrieval off for this model: passkey_lengths: [].",
        )
