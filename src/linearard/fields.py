"""Configuration fields that carry their own description, for `--help` and the documentation."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import field
from typing import Any

from linearard.errors import RecipeError, shown

_LONGEST_PATH = 4000


def described(default: Any | Callable[[], Any], help_text: str, **metadata: Any) -> Any:
    """A dataclass field with a help text; a callable default is a factory."""
    metadata = {"help": help_text, **metadata}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def user_path(text: str, name: str) -> str:
    """A path as a user wrote it, with `~` in the place of a home folder.

    Args:
        text: the path.
        name: the field it stands in, for the message.

    Raises:
        RecipeError: there is no such home, or no such path can be.
    """
    path = os.path.expanduser(text)
    if not text.strip() or path.startswith("~") or len(path) > _LONGEST_PATH:
        raise RecipeError(
            expected=f"{name} to be a path of 1 to {_LONGEST_PATH} characters, in a home that exists",
            got=shown(text),
            fix=f"Correct {name}.",
        )
    return path
