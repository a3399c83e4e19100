"""Documents out of records: text under a key, or a conversation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from linearard.data.chat import COLUMNS, read_chat
from linearard.errors import DataError

#: A row of a file or a data set, or a whole text; and where it stands, for messages.
Record = tuple[dict[str, Any] | str, str]
_SURROGATE = re.compile("[\ud800-\udfff]")


def documents(records: Iterable[Record], column: str) -> Iterator[str]:
    """The document of each record; an absent value (null) is an empty one.

    Where the key is missing, a conversation under `messages` or `conversations` takes its place.

    Args:
        records: of a file or a data set.
        column: the key that holds the text.

    Raises:
        DataError: there is no text, or half a character in it.
    """
    for row, place in records:
        yield row if isinstance(row, str) else _document(row, column, place)
        del row  # one copy of a book is enough


def _document(row: dict[str, Any], column: str, place: str) -> str:
    key = next((name for name in (column, *COLUMNS) if name in row), column)
    value = row.get(key, 0)
    if value is None or (value == [] and key in COLUMNS):
        return ""
    if isinstance(value, list) and (key in COLUMNS or all(isinstance(v, dict) for v in value)):
        value = read_chat(value, place)
    if not isinstance(value, str):
        raise DataError(
            expected=f"text under {column!r} at {place}",
            got=f"a {type(value).__name__} there" if key in row else f"keys {', '.join(row)}",
            fix="Set `text_column` to the key that holds the text.",
        )
    return whole_characters(value, place)


def whole_characters(text: str, place: str) -> str:
    """The text, if no tokenizer will choke on half a character in it.

    Raises:
        DataError: there is one (a lone surrogate).
    """
    if not text.isascii() and (half := _SURROGATE.search(text)):
        raise DataError(
            expected=f"whole characters at {place}",
            got=f"half of one, U+{ord(half[0]):04X}, at character {half.start()} of the text",
            fix="Replace it (with U+FFFD, for instance) or leave the record out; an emoji was cut there.",
        )
    return text
