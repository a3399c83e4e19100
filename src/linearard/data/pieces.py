"""Long documents through a tokenizer in pieces that give the tokens of the whole.

A tokenizer needs some 125 bytes for each character of one call. What it makes of a place depends on the
text around it, but not on text far away. So two neighbouring pieces overlap; where both have the same
tokens at the same places over the middle of the overlap, they are joined there. Where they do not, a piece
is made longer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Generator, Iterator, Sequence
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


def encode_together(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[list[int], bool]]:
    """Yield the ids of documents one after another, without special tokens around them.

    A piece of every long document is encoded at a time: the tokenizer's own threads take one each.

    Args:
        tokenizer: a fast tokenizer of `transformers`.
        texts: the documents; all of them together are a batch's characters, or there is only one.

    Yields:
        Ids, of which a long document has several parts, and whether the document ends with them.
    """
    # Not verbose: nothing here is fed to the model in one piece, so its longest input does not matter.
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    found: list[deque[list[int]]] = [deque() for _ in texts]
    short = [at for at, text in enumerate(texts) if len(text) <= PIECE_CHARACTERS]
    if short:
        encoded = tokenizer([texts[at] for at in short], **options)["input_ids"]
        for at, ids in zip(short, encoded, strict=True):
            found[at].append(ids)
    joining = {at: _joined(texts[at], found[at]) for at in sorted({*range(len(texts))} - {*short})}
    wanted = {at: next(work) for at, work in joining.items()}
    at = 0
    while at < len(texts):
        ended = at not in wanted
        while found[at]:
            ids = found[at].popleft()
            yield ids, ended and not found[at]
        if ended:
            at += 1
            continue
        asked = list(wanted.items())
        cut = [texts[n][start : start + size] for n, (start, size) in asked]
        encoded = tokenizer(cut, return_offsets_mapping=True, **options)
        parts = zip(asked, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        for (n, (start, _)), ids, spans in parts:
            try:
                wanted[n] = joining[n].send(_Encoded(ids, spans, start))
            except StopIteration:
                del wanted[n]


_Asking = Generator[tuple[int, int], _Encoded, Any]


def _joined(text: str, found: deque[list[int]]) -> _Asking:
    """Ask for pieces, where each begins and its characters, and put the ids of the document into `found`."""
    size, start, kept = PIECE_CHARACTERS, 0, 0
    piece = yield start, size
    while start + size < len(text):
        joined = yield from _join(piece, start + size)
        if joined is None:
            size *= 2
            piece = yield start, size
            continue
        end, start, following, first = joined
        found.append(piece.ids[kept:end])
        size, piece, kept = PIECE_CHARACTERS, following, first
    found.append(piece.ids[kept:])


def _join(piece: _Encoded, end: int) -> _Asking:
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
    following = yield place, PIECE_CHARACTERS
    low, high = place + _MARGIN, end - _MARGIN
    left, right = piece.between(low, high), following.between(low, high)
    alike = len(left) >= _LEAST_TOKENS and [(piece.ids[i], piece.place(i)) for i in left] == [
        (following.ids[i], following.place(i)) for i in right
    ]
    return (left[0], place, following, right[0]) if alike else None
