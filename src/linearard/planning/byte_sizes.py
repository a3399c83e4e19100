"""Sizes of memory as users write them."""

from __future__ import annotations

import re

from linearard.errors import RecipeError

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{middle}B": base**power
    for power, letter in enumerate("KMGT", 1)
    for middle, base in (("", 1000), ("i", 1024))
}

_LEAST = 2**10  # bytes without a unit; below, a unit was forgotten
_MOST = 2**60


def parse_bytes(text: str) -> float:
    """Bytes of `24GiB`, `80 GB`, `512MiB` or a plain number.

    Raises:
        RecipeError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    known = match is not None and match[2].lower() in units
    if not known or not 0 < float(match[1]) * units[match[2].lower()] < _MOST:
        raise RecipeError(
            expected="a size of memory such as 24GiB or 80GB",
            value=text,
            fix="Correct --gpu-memory.",
        )
    size = float(match[1]) * units[match[2].lower()]
    if not match[2] and size < _LEAST:
        raise RecipeError(
            expected="memory of a GPU",
            got=f"{size:g} bytes",
            fix=f"Name the unit: {match[1]}GiB, for instance.",
        )
    return size
