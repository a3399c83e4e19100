"""What can be read again as documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A sequence of documents that can be read again.

    Attributes:
        name: as the user wrote it, for messages.
        read: starts a new pass over the documents (str), always in the same order.
        parts: what must not be both trained on and held out.
        identity: JSON-able; the same identity means the same documents.
        characters: about how many there are, or None.
        lazy: reading less costs less, by a network.
        plain: it holds text alone, no records.
    """

    name: str
    read: Callable[[], Iterator[str]]
    parts: frozenset[str]
    identity: list
    characters: int | None = None
    lazy: bool = False
    plain: bool = False
