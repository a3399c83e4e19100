"""Configuration fields that carry their own description, for `--help` and the documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any


def described(default: Any | Callable[[], Any], help_text: str, **metadata: Any) -> Any:
    """A dataclass field with a help text; a callable default is a factory."""
    metadata = {"help": help_text, **metadata}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)
