"""Long documents through a tokenizer in pieces that give the tokens of the whole.

A tokenizer needs some 125 bytes for each character of one call. What it makes of a place depends on the
text around it, but not on text far away. So two neighbouring pieces overlap; where both have the same
tokens at the same places over the middle of the overlap, they are joined there. Where they do not, a piece
is made longer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, NamedTuple

PIECE_CHARACTERS = 250_000
_OVERLAP = 8_192  # characters
_MARGIN = 2_048  # of the overlap, at either end, where the end of a piece may show
_LEAST_TOKENS = 8  # that must be alike


class _Encoded(NamedTuple):
    """Ids and the places of their characters, counted from where the piece begins."""

    ids: list[int]
    spans: list[tuple[int, int]]
    start: int

    def place(self, token: int) -> int:
        """The character of the document that a token begins with."""
        return self.start + self.spans[token][0]

    def between(self, low: int, high: int) -> range:
        """The tokens that lie between two characters of the document."""
        low, high = low - self.start, high - self.start
        first = bisect_left(self.spans, (low, low))
        last = bisect_left(self.spans, (high, high))
        while last > first and self.spans[last - 1][1] > high:
            last -= 1
        return range(first, last)


def encode_in_pieces(tokenizer: Any, text: str) -> Iterator[list[int]]:
    """Yield the ids of a document piece by piece, without special tokens around it.

    Args:
        tokenizer: a fast tokenizer of `transformers`.
        text: the document.
    """
    size, start, kept = PIECE_CHARACTERS, 0, 0
    piece = _encode(tokenizer, text, start, size)
    while start + size < len(text):
        joined = _join(tokenizer, text, piece, start + size)
        if joined is None:
            size *= 2
            piece = _encode(tokenizer, text, start, size)
            continue
        end, start, following, first = joined
        yield piece.ids[kept:end]
        size, piece, kept = PIECE_CHARACTERS, following, first
    yield piece.ids[kept:]


def _join(
    tokenizer: Any, text: str, piece: _Encoded, end: int
) -> tuple[int, int, _Encoded, int] | None:
    """How a piece that ends at the character `end` is joined to the next.

    Returns:
        How many of its tokens count, where the next begins, the next, and its first token that counts; None
        where the two do not agree.
    """
    # The next begins where a token does: in text that repeats itself, tokens repeat in step.
    before = piece.between(piece.start, end - _OVERLAP)
    place = piece.place(before[-1]) if before else piece.start
    if place <= piece.start + _MARGIN:  # nothing would be gained
        return None
    following = _encode(tokenizer, text, place, PIECE_CHARACTERS)
    low, high = place + _MARGIN, end - _MARGIN
    left, right = piece.between(low, high), following.between(low, high)
    alike = len(left) >= _LEAST_TOKENS and [(piece.ids[i], piece.place(i)) for i in left] == [
        (following.ids[i], following.place(i)) for i in right
    ]
    return (left[0], place, following, right[0]) if alike else None


def _encode(tokenizer: Any, text: str, start: int, size: int) -> _Encoded:
    found = tokenizer(
        text[start : start + size],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    return _Encoded(found["input_ids"], found["offset_mapping"], start)
