"""Pass-key retrieval: a number hidden in prose, asked for at the end.

The form follows "Landmark Attention" (arXiv 2305.16300); the prose is this project's own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from linearard.errors import DataError
from linearard.evaluation.continuations import Continuation, Encoder
from linearard.evaluation.prompts import Prompt, check_prompt

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


def passkey_prompts(
    tokenizer: Any, lengths: Sequence[int], depths: Sequence[float], repeats: int, seed: int
) -> list[Prompt]:
    """Prompts for every length and depth; the same for the same seed.

    Every prompt holds as many whole sentences of filler as fit, and is decoded again to make sure
    that the needle is among its tokens. The answer is a key of five digits.

    Raises:
        DataError: a length is too short for needle and question, or the tokenizer loses the key.
    """
    encode = Encoder(tokenizer)
    filler = {sentence: encode.inside(sentence) for sentence in FILLER}
    prompts = []
    for length in lengths:
        for depth in depths:
            for repeat in range(repeats):
                chance = random.Random(f"{seed}/{length}/{depth}/{repeat}")
                key = str(chance.randint(10_000, 99_999))
                prompt = Prompt(
                    length, depth, key, _fill(encode, filler, length, depth, key, chance)
                )
                check_prompt(tokenizer, prompt, [_needle(key)], "passkey_lengths")
                prompts.append(prompt)
    return prompts


def _needle(key: str) -> str:
    return f"The pass key is {key}. Remember it. {key} is the pass key."


def _fill(
    encode: Encoder,
    filler: Mapping[str, list[int]],
    length: int,
    depth: float,
    key: str,
    chance: random.Random,
) -> Continuation:
    """The longest prompt of whole sentences that has at most `length` tokens."""
    head, needle = encode(INTRODUCTION), encode.inside(_needle(key))
    tail = encode.ending(QUESTION, key)
    room = length - len(head) - len(needle) - len(tail.ids)
    if room < 0:
        raise DataError(
            expected=f"a pass-key length of at least {length - room} tokens",
            got=str(length),
            fix="Correct passkey_lengths.",
        )
    sentences = _sentences(filler, room, chance)
    before = round(depth * len(sentences))
    parts = [head, *sentences[:before], needle, *sentences[before:]]
    return tail.behind(list(chain.from_iterable(parts)))


def _sentences(
    filler: Mapping[str, list[int]], room: int, chance: random.Random
) -> list[list[int]]:
    """Shuffled rounds of all sentences, as many as have `room` tokens together."""
    chosen: list[list[int]] = []
    while True:
        for sentence in chance.sample(FILLER, len(FILLER)):
            room -= len(filler[sentence])
            if room < 0:
                return chosen
            chosen.append(filler[sentence])
