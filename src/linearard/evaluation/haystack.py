"""Held-out text as a haystack: spans of real prose with places where a needle may stand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from linearard.data import Documents, beginning
from linearard.errors import DataError

_MARKS = (".", "!", "?", "。", "！", "？")
_QUOTES = "\"'”’»)]"
_RAREST = 256  # tokens; text with fewer sentence ends than one in so many has none to speak of
_NONE = np.empty(0, np.int64)  # of no documents


class Haystack:
    """All held-out documents as one long text, from which spans are cut.

    A needle may stand where a sentence ends. Text without punctuation takes one at any token.

    Args:
        tokenizer: what the documents were encoded with.
        documents: int64 [tokens] each.
    """

    def __init__(self, tokenizer: Any, documents: Sequence[Tensor]) -> None:
        texts = Documents(documents, beginning(tokenizer)).texts
        # One array: the spans of thousands of prompts are cut from it.
        self._ids = np.concatenate([_NONE, *(np.asarray(text.cpu()) for text in texts)])
        ending = [i for i in np.unique(self._ids).tolist() if _ends_sentence(tokenizer.decode([i]))]
        places = np.flatnonzero(np.isin(self._ids, ending)) + 1
        if len(places) * _RAREST < len(self._ids):
            places = np.arange(1, len(self._ids) + 1)
        self._places = np.concatenate(([0], places))

    def cut(self, room: int, chance: random.Random) -> tuple[list[int], list[int]]:
        """A span of whole sentences, as long as fits.

        Args:
            room: most tokens.
            chance: draws where the span starts.

        Returns:
            The ids, and the ascending positions among them where a needle may stand (0: in front).

        Raises:
            DataError: all the documents together are shorter.
        """
        spare = len(self._ids) - room
        if spare < 0:
            raise DataError(
                expected=f"held-out documents of {room} tokens together, to hide something in",
                got=f"{len(self._ids)} tokens",
                fix="Give more held-out text or lower retrieval_lengths.",
            )
        first = chance.randrange(int(np.searchsorted(self._places, spare, "right")))
        start = int(self._places[first])
        last = np.searchsorted(self._places, start + room, "right")
        places = (self._places[first:last] - start).tolist()
        if len(places) == 1:  # one sentence that is longer than the room
            places.append(room)
        return self._ids[start : start + places[-1]].tolist(), places


def _ends_sentence(text: str) -> bool:
    return text.rstrip(_QUOTES).endswith(_MARKS)
