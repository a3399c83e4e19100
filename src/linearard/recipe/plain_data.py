"""What a recipe may hold at all: names, texts, numbers, lists and mappings, in sensible amounts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from linearard.errors import RecipeError, shown

_DEEPEST = 24
_MOST_VALUES = 100_000
_LONGEST_TEXT = 100_000
#: No float32 beyond; whole numbers beyond 64 bits fit no counter.
_LARGEST_NUMBER, _LARGEST_INTEGER = 1e30, 2**63 - 1


def plain_data(value: Any, where: str) -> Any:
    """A copy in which no mapping or list stands in two places, of plain values alone.

    Two places with one YAML alias are two values: a change of one is none of the other.

    Args:
        value: what YAML, JSON or a caller gave.
        where: what it belongs to, for messages.

    Raises:
        RecipeError: a value of another kind, a name that is no text, a number that is not finite or too
            large, a text with control characters, nesting too deep, too many values, or a value within
            itself.
    """
    return _Copy(where).of(value, (), ())


class _Copy:
    def __init__(self, where: str) -> None:
        self._where, self._left = where, _MOST_VALUES

    def of(self, value: Any, path: tuple[str, ...], above: tuple[int, ...]) -> Any:
        self._left -= 1
        if self._left < 0:
            fix = "Write less: aliases multiply what they name."
            self._refuse(f"at most {_MOST_VALUES} values", "more", fix)
        if not isinstance(value, dict | list):
            return self._checked(value, path)
        if id(value) in above:
            self._refuse("plain values", "an alias within what it names", "Write the value out.")
        if len(above) >= _DEEPEST:
            fix = "Take brackets away."
            self._refuse(f"at most {_DEEPEST} levels of nesting", "more", fix)
        above = (*above, id(value))
        if isinstance(value, list):
            return [self.of(item, (*path, str(i)), above) for i, item in enumerate(value)]
        return {
            self._name(key, path): self.of(item, (*path, str(key)), above)
            for key, item in value.items()
        }

    def _name(self, key: Any, path: tuple[str, ...]) -> str:
        if type(key) is not str:
            at = _named(path)
            self._refuse(f"{at}names in text", shown(key), "Put the name in quotes, or correct it.")
        return self._checked(key, path)

    def _checked(self, value: Any, path: tuple[str, ...]) -> Any:
        at = f"{_named(path)}to be " if path else ""
        if type(value) is float and not abs(value) <= _LARGEST_NUMBER:
            expected = f"{at}a finite number, at most {_LARGEST_NUMBER:g},"
        elif type(value) is int and abs(value) > _LARGEST_INTEGER:
            expected = f"{at}a number of at most 63 bits"
        elif type(value) is str and len(value) > _LONGEST_TEXT:
            expected = f"{at}text of at most {_LONGEST_TEXT} characters"
        elif type(value) is str and (wrong := next(_unprintable(value), None)):
            expected = f"{at}text without control characters and halves of characters"
            value = wrong
        elif value is None or type(value) in (bool, int, float, str):
            return value
        else:
            expected = f"{at}text, a number, true, false, null, a list or a mapping"
        self._refuse(expected, shown(value), "Correct it.")

    def _refuse(self, expected: str, got: str, fix: str) -> None:
        raise RecipeError(expected=f"{expected} in {self._where}", got=got, fix=fix)


def _unprintable(text: str) -> Iterator[str]:
    for character in text:
        code = ord(character)
        if (code < 32 and character not in "\n\t\r") or code == 127 or 0xD800 <= code < 0xE000:
            yield character


def _named(path: tuple[str, ...]) -> str:
    return f"{shown('.'.join(path))[1:-1]} " if path else ""
