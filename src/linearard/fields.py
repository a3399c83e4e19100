"""Configuration fields that carry their own description and range: for `--help`, and for one check of all."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, NoReturn

from linearard.errors import RecipeError, UserError

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
        names: all that the value can be, where these are names.
        parts: of a value that is not so, what stands in it: the ending of a name for it, itself, its rule.
    """

    right: Callable[[Any], bool]
    expected: str
    names: tuple[str, ...] = ()
    parts: Callable[[Any], Iterable[tuple[str, Any, Rule]]] = lambda value: ()

    def or_null(self) -> Rule:
        """The same, or null."""
        return replace(
            self, right=lambda v: v is None or self.right(v), expected=f"{self.expected}, or null"
        )


@dataclass(frozen=True)
class Beside:
    """What a value has to be beside the other fields of its section.

    Attributes:
        right: whether it is so, in a whole configuration.
        expected: the same in words that complete "NAME to be".
        fix: what to do; default: to set the field.
    """

    right: Callable[[Any], bool]
    expected: str
    fix: str = ""


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
    known = tuple(map(str, names))
    return Rule(lambda v: isinstance(v, str) and v in names, f"one of {listed}", known)


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

    listed = ", ".join(names)
    known = Rule(lambda key: key in names, f"names among {listed}", tuple(names))

    def parts(value: Any) -> Iterator[tuple[str, Any, Rule]]:
        for key, part in value.items() if isinstance(value, dict) else ():
            if names and key not in names:
                yield "", key, known
            elif item is not None:
                yield f".{key}", part, item

    of = f" of {listed}" if names else " of names"
    to = f" to values, each {item.expected}" if item else ""
    return Rule(right, f"a mapping{of}{to}", parts=parts)


def described(
    default: Any | Callable[[], Any],
    help_text: str,
    rule: Rule | None = None,
    *beside: Beside,
    **metadata: Any,
) -> Any:
    """A dataclass field with a help text and what its values have to be.

    Args:
        default: of the field; a callable is a factory.
        help_text: for `--help` and the reference pages.
        rule: what a value has to be by itself.
        beside: what it has to be beside other fields.
        metadata: `formerly`, a name that the field had in earlier versions.
    """
    metadata = {"help": help_text, "rule": rule, "beside": beside, **metadata}
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


def refuse(
    name: str, expected: str, value: Any, fix: str = "", error: type[UserError] = RecipeError
) -> NoReturn:
    """Refuse the value of a field.

    Args:
        name: of the field.
        expected: what it has to be, in words that complete "NAME to be".
        value: what it is.
        fix: what to do; default: to set the field.
        error: the kind of error.
    """
    raise error(expected=f"{name} to be {expected}", value=value, fix=fix or f"Set {name}.")


def check_value(
    value: Any, rule: Rule, name: str, given: Any = None, error: type[UserError] = RecipeError
) -> None:
    """Refuse a value that does not follow its rule, or the first part of it that does not.

    Args:
        value: what is checked.
        rule: what it has to be.
        name: of its field, for the message.
        given: what the user wrote, where that was another form of it.
        error: the kind of error.

    Raises:
        RecipeError: it does not follow the rule; or another `error`.
    """
    if rule.right(value):
        return
    for ending, part, of_part in rule.parts(value):
        check_value(part, of_part, name + ending, error=error)
    near = difflib.get_close_matches(str(value), rule.names, n=1)
    fix = f"Did you mean {near[0]!r}?" if near else ""
    refuse(name, rule.expected, value if given is None else given, fix, error)


def check_fields(config: Any, section: str = "") -> None:
    """Refuse a configuration dataclass with a value out of its field's range, or not right beside others.

    Args:
        config: an instance; fields described without a rule are left to it.
        section: its name in a recipe, for the message; "--" for options of the command line.

    Raises:
        RecipeError: the first wrong field is named.
    """

    def named(name: str) -> str:
        option = f"--{name.replace('_', '-')}"
        return option if section == "--" else f"{section}.{name}" if section else name

    for name, rule in rules_of(type(config)).items():
        check_value(getattr(config, name), rule, named(name))
    for item in fields(config):
        for beside in item.metadata.get("beside", ()):
            if not beside.right(config):
                value = getattr(config, item.name)
                refuse(named(item.name), beside.expected, value, beside.fix)


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
        refuse(name, f"a path of 1 to {_LONGEST_PATH} characters, in a home that exists", text)
    return path


def _could_be_path(text: str) -> bool:
    parts = text.encode("utf-8", "surrogatepass").split(b"/")
    return len(text) <= _LONGEST_PATH and max(map(len, parts)) <= _LONGEST_NAME and "\0" not in text
