"""Held-out text as a haystack: spans of real prose with places where a needle may stand."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Tensor

from linearard.data import Documents, beginning
from linearard.errors import DataError

_MARKS = (".", "!", "?", "。", "！", "？")
_QUOTES = "\"'”’»)]"
_RAREST = 256  # tokens; text with fewer sentence ends than one in so many has none to speak of


class Haystack:
    """All held-out documents as one long text, from which spans are cut.

    A needle may stand where a sentence ends. Text without punctuation takes one at any token.

    Args:
        tokenizer: what the documents were encoded with.
        documents: int64 [tokens] each.
    """

    def __init__(self, tokenizer: Any, documents: Sequence[Tensor]) -> None:
        texts = [text.tolist() for text in Documents(documents, beginning(tokenizer)).texts]
        # One list: the spans of thousands of prompts share its numbers.
        self._ids: list[int] = list(chain.from_iterable(texts))
        known = set(self._ids)
        ending = {i for i in known if _ends_sentence(tokenizer.decode([i]))}
        places = [i + 1 for i, token in enumerate(self._ids) if token in ending]
        if len(places) * _RAREST < len(self._ids):
            places = list(range(1, len(self._ids) + 1))
        self._places = [0, *places]

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
        first = chance.randrange(bisect_right(self._places, spare))
        start = self._places[first]
        last = bisect_right(self._places, start + room)
        places = [place - start for place in self._places[first:last]]
        if len(places) == 1:  # one sentence that is longer than the room
            places.append(room)
        return self._ids[start : start + places[-1]], places


def _ends_sentence(text: str) -> bool:
    return text.rstrip(_QUOTES).endswith(_MARKS)
