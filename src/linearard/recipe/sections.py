"""Plain data to configuration dataclasses: every name and type is checked, every mistake named."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any

from linearard.errors import RecipeError, shown
from linearard.fields import check_value, former_names, rules_of


def meant(name: object, known: list[str], prefix: str = "") -> str:
    """A question for the name that was perhaps meant; empty where none is near."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"Did you mean {prefix}{close[0]}?" if close else ""


def build_section(kind: type, values: Any, where: str) -> Any:
    """A configuration dataclass from plain data.

    Raises:
        RecipeError: a field is unknown, misspelt, of the wrong type or out of range.
    """
    fitted = coerced(kind, values, where)
    for item in dataclasses.fields(kind):
        optional = (item.default, item.default_factory) != (dataclasses.MISSING,) * 2
        if not optional and item.name not in fitted:
            raise RecipeError(
                expected=f"{where}.{item.name} in the recipe",
                got="none",
                fix=f"Set {where}.{item.name}.",
            )
    return kind(**fitted)


def coerced(kind: type, values: Any, where: str) -> dict[str, Any]:
    """The values as the fields of a dataclass want them; errors as in `build_section`.

    Args:
        kind: the dataclass.
        values: plain data.
        where: the section's name; empty at the top of the recipe.
    """
    if not isinstance(values, dict):
        raise RecipeError(
            expected=f"{where} to be a mapping of fields",
            value=values,
            fix=f"Correct the section {where}.",
        )
    hints = typing.get_type_hints(kind)
    names = [item.name for item in dataclasses.fields(kind) if item.init]
    _check_not_former(kind, values, where)
    check_names(where, values, names)
    rules, prefix = rules_of(kind), f"{where}." if where else ""
    fitted = {}
    for name, value in values.items():
        fitted[name] = _coerce(value, hints[name], f"{prefix}{name}")
        if name in rules:
            check_value(fitted[name], rules[name], f"{prefix}{name}", value)
    return fitted


def _check_not_former(kind: type, values: dict[str, Any], where: str) -> None:
    for old, name in former_names(kind).items():
        if old in values:
            raise RecipeError(
                expected=f"{where}.{name}, as the field is called now",
                got=f"{where}.{old}, its earlier name",
                fix=f"Rename {old} to {name}.",
            )


def check_names(where: str, values: dict[str, Any], known: list[str]) -> None:
    """Refuse a name that is not known; `where` is the section's, empty at the top of the recipe."""
    prefix = f"{where}." if where else ""
    for name in values:
        if name not in known:
            ours = not where.startswith("stages.") or len(known) <= 20
            fields = ", ".join(known) if ours else "ours, or of TrainingArguments"
            raise RecipeError(
                expected=f"a field of {where or 'the recipe'} ({fields})",
                got=shown(f"{prefix}{name}")[1:-1] or repr(name),
                fix=meant(name, known, prefix)
                or "Remove it; `linearard train --help` lists every field.",
            )


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Check a plain type; types this module does not know are left to the dataclass itself."""
    try:
        return _fit(value, hint)
    except TypeError:
        raise RecipeError(
            expected=f"{where} to be {_described(hint)}", value=value, fix=f"Correct {where}."
        ) from None


def _fit(value: Any, hint: Any) -> Any:
    """The value as the hint asks for it (whole numbers where numbers are wanted), or TypeError."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        # The value's own type first: 1 stays a whole number where both kinds are allowed.
        for option in sorted(inner, key=lambda option: option is not type(value)):
            try:
                return _fit(value, option)
            except TypeError:
                continue
        raise TypeError
    kind = origin or hint
    if kind is float and type(value) is int:
        return float(value)
    if kind in _PLAIN and type(value) is not kind:
        raise TypeError
    if kind is list and inner:
        return [_fit(item, inner[0]) for item in value]
    if kind is dict and inner:
        return {_fit(key, inner[0]): _fit(item, inner[1]) for key, item in value.items()}
    return value


_PLAIN = {
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def _described(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_described, inner)))
    name = _PLAIN.get(origin or hint, getattr(hint, "__name__", str(hint)))
    listed = origin in (list, dict) and inner[-1] is not Any
    return f"{name} (each {_described(inner[-1])})" if listed else name
