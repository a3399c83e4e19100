"""Configuration fields that carry their own description and range: for `--help`, and for one check of all."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any

from linearard.errors import RecipeError, shown

_LONGEST_PATH, _LONGEST_NAME = 4000, 255
#: Counts fit 31 bits: tensors of the libraries below are indexed so.
LARGEST_COUNT = 2**31 - 1
#: numpy has seeds of 32 bits; a run adds to the one that it is given.
LARGEST_SEED = 2**32 - 1000


@dataclass(frozen=True)
class Rule:
    """What a value has to be.

    Attributes:
        right: whether a value is so; any value may be asked about.
        expected: the same in words that complete "NAME to be".
    """

    right: Callable[[Any], bool]
    expected: str

    def or_null(self) -> Rule:
        """The same, or null."""
        return Rule(lambda v: v is None or self.right(v), f"{self.expected}, or null")


def whole(least: int = 0, most: int = LARGEST_COUNT) -> Rule:
    """A whole number; a truth value is none."""
    return Rule(
        lambda v: type(v) is int and least <= v <= most, f"a whole number from {least} to {most}"
    )


def number(
    least: float, most: float, *, above: bool = False, below: bool = False, words: str = ""
) -> Rule:
    """A finite number from `least` to `most`, without its ends where `above` or `below` say so.

    Args:
        least, most: the range.
        above, below: whether its ends are outside.
        words: what the number is, in place of "a number".
    """

    def right(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return (value > least if above else value >= least) and (
            value < most if below else value <= most
        )

    first, last = (int(end) if end == int(end) < 1e15 else f"{end:g}" for end in (least, most))
    low = f"above {first}" if above else f"from {first}"
    high = f"below {last}" if below else f"at most {last}" if above else f"to {last}"
    joint = ", " if above or below else " "
    return Rule(right, f"{words or 'a number'} {low}{joint}{high}")


def flag() -> Rule:
    """True or false."""
    return Rule(lambda v: isinstance(v, bool), "true or false")


def one_of(names: Collection[Any]) -> Rule:
    """One of some names."""
    listed = ", ".join(map(str, names))
    return Rule(lambda v: isinstance(v, str) and v in names, f"one of {listed}")


def text(words: str = "") -> Rule:
    """Text of more than blanks that could be a path: not longer, in no part.

    Args:
        words: what it is, in place of its size.
    """

    def right(value: Any) -> bool:
        return isinstance(value, str) and bool(value.strip()) and _could_be_path(value)

    size = f"text of 1 to {_LONGEST_PATH} characters, {_LONGEST_NAME} bytes between slashes at most"
    return Rule(right, words or size)


def a_list(item: Rule, *, least: int = 0, distinct: bool = True) -> Rule:
    """A list of values that each follow a rule."""

    def right(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) >= least
            and all(map(item.right, value))
            and not (distinct and len(set(map(repr, value))) < len(value))
        )

    size, kind = f"at least {least} " if least else "", "different values" if distinct else "values"
    return Rule(right, f"a list of {size}{kind}, each {item.expected}")


def a_mapping(item: Rule | None = None, *, names: Collection[str] = ()) -> Rule:
    """A mapping of names, or of some names alone, to values that each follow a rule."""

    def right(value: Any) -> bool:
        return isinstance(value, dict) and all(
            isinstance(key, str)
            and key.strip()
            and (not names or key in names)
            and (item is None or item.right(part))
            for key, part in value.items()
        )

    of = f" of {', '.join(names)}" if names else " of names"
    return Rule(right, f"a mapping{of}" + (f" to values, each {item.expected}" if item else ""))


def described(
    default: Any | Callable[[], Any], help_text: str, rule: Rule | None = None, **metadata: Any
) -> Any:
    """A dataclass field with a help text and what its values have to be; a callable default is a factory.

    `formerly` in the metadata is a name that the field had in earlier versions.
    """
    metadata = {"help": help_text, "rule": rule, **metadata}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def required(help_text: str, rule: Rule | None = None) -> Any:
    """The same without a default."""
    return field(metadata={"help": help_text, "rule": rule})


def rules_of(kind: type) -> dict[str, Rule]:
    """The rules of a dataclass by field: those it was described with, and its `inherited_rules`."""
    names = {item.name: item.metadata.get("rule") for item in fields(kind) if item.init}
    inherited = {n: r for n, r in getattr(kind, "inherited_rules", {}).items() if n in names}
    return inherited | {name: rule for name, rule in names.items() if rule is not None}


def former_names(kind: type) -> dict[str, str]:
    """The fields of a dataclass by the names that they had in earlier versions."""
    was = {item.metadata.get("formerly"): item.name for item in fields(kind)}
    return {old: name for old, name in was.items() if old is not None}


def check_value(value: Any, rule: Rule, name: str, given: Any = None) -> None:
    """Refuse a value that does not follow its rule.

    Args:
        value: what is checked.
        rule: what it has to be.
        name: of its field, for the message.
        given: what the user wrote, where that was another form of it.

    Raises:
        RecipeError: it does not follow the rule.
    """
    if not rule.right(value):
        got = shown(value if given is None else given)
        raise RecipeError(expected=f"{name} to be {rule.expected}", got=got, fix=f"Set {name}.")


def check_fields(config: Any, section: str = "") -> None:
    """Refuse a configuration dataclass with a value out of its field's range.

    Args:
        config: an instance; fields described without a rule are left to it.
        section: its name in a recipe, for the message.

    Raises:
        RecipeError: the first wrong field is named.
    """
    for name, rule in rules_of(type(config)).items():
        check_value(getattr(config, name), rule, f"{section}.{name}" if section else name)


def user_path(text: str, name: str) -> str:
    """A path as a user wrote it, with `~` in the place of a home folder.

    Args:
        text: the path.
        name: the field it stands in, for the message.

    Raises:
        RecipeError: there is no such home, or no such path can be.
    """
    path = os.path.expanduser(text)
    if not text.strip() or path.startswith("~") or not _could_be_path(path):
        raise RecipeError(
            expected=f"{name} to be a path of 1 to {_LONGEST_PATH} characters, in a home that exists",
            got=shown(text),
            fix=f"Set {name}.",
        )
    return path


def _could_be_path(text: str) -> bool:
    parts = text.encode("utf-8", "surrogatepass").split(b"/")
    return len(text) <= _LONGEST_PATH and max(map(len, parts)) <= _LONGEST_NAME and "\0" not in text
