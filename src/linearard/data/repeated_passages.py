"""Windows in which passages come back: text that only a model which looks back can predict."""

from __future__ import annotations

import numpy as np

_LENGTHS = (8, 64)  # tokens of a passage
_CUE = 4  # tokens of a repetition before it can be known as one
_SHUFFLED = 0.5  # share of passages whose tokens are put in random order, in both places


def repeat_passages(
    ids: np.ndarray, share: float, seed: int, opening: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """A copy of `ids` in which about `share` of the tokens repeat a passage that stood earlier.

    Sources lie anywhere before their repetition, so distances run up to the window; the earlier the
    likelier (a uniform number to the power `opening`), for of sources drawn evenly hardly any lies in
    the opening of a long window, and a model trained so found everything but what stood there. In half
    of the passages the tokens are shuffled first, in both places alike: knowledge of the language does not
    help to continue these, only looking back does.

    Args:
        ids: token ids [tokens].
        share: of the tokens, from 0 to 0.5.
        seed: the same seed, the same passages.
        opening: 1 draws sources evenly.

    Returns:
        The tokens, and which of them looking back foretells: bool [tokens], true in a repetition but
        for its first tokens, which only show that it is one.
    """
    ids, tokens = ids.copy(), len(ids)
    repeated = np.zeros(tokens, bool)
    chance = np.random.default_rng(seed)
    shortest, longest = _LENGTHS
    passages = round(share * tokens / np.mean(_LENGTHS))
    copies = []
    for place in np.sort(chance.integers(shortest, max(tokens - shortest, shortest + 1), passages)):
        length = min(int(chance.integers(shortest, longest + 1)), int(place), tokens - int(place))
        source = int((place - length + 1) * chance.random() ** opening)
        copies.append((source, int(place), length))
        # Before anything is copied: later, it could change what an earlier passage repeats.
        if chance.random() < _SHUFFLED:
            ids[source : source + length] = chance.permutation(ids[source : source + length])
    # From left to right, so that no repetition overwrites the source of an earlier one.
    for source, place, length in copies:
        ids[place : place + length] = ids[source : source + length]
        repeated[place : place + length] = np.arange(length) >= _CUE
        # What is left there of an earlier repetition has to be known anew.
        repeated[place + length : place + length + _CUE] = False
    return ids, repeated
