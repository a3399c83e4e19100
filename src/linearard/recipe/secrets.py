"""Secrets have no place in a recipe: every checkpoint and report repeats it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from linearard.errors import RecipeError, without_secrets

_HIDDEN = "[hidden]"
#: Names of fields that hold a secret; `perplexity_tokens` and the like hold none.
_NAME = re.compile(
    r"(?:.*_)?(?:token|auth|secret|password|passwd|credentials?|api_?key|access_key|private_key)",
    re.IGNORECASE,
)


def refuse_secrets(source: Any, path: tuple[str, ...] = ()) -> None:
    """Refuse a recipe with anything that looks like a token or a password; the message hides it.

    Args:
        source: plain data.
        path: the names above it.

    Raises:
        RecipeError: it holds a secret.
    """
    if isinstance(source, Mapping):
        for name, value in source.items():
            refuse_secrets(value, (*path, str(name)))
            if without_secrets(str(name)) != name or _is_secret(str(name), value):
                _refuse((*path, without_secrets(str(name))))
    elif isinstance(source, list):
        for value in source:
            refuse_secrets(value, path)
    elif isinstance(source, str) and without_secrets(source) != source:
        _refuse(path)


def hide_secrets(source: Any) -> Any:
    """A copy of plain data with `[hidden]` in the place of everything that looks like a secret."""
    if isinstance(source, Mapping):
        return {
            without_secrets(str(name)): _HIDDEN
            if _is_secret(str(name), value)
            else hide_secrets(value)
            for name, value in source.items()
        }
    if isinstance(source, list):
        return [hide_secrets(value) for value in source]
    return without_secrets(source) if isinstance(source, str) else source


def _is_secret(name: str, value: Any) -> bool:
    return bool(value) and isinstance(value, str) and _NAME.fullmatch(name) is not None


def _refuse(path: tuple[str, ...]) -> None:
    raise RecipeError(
        expected="a recipe without secrets: every checkpoint and report repeats it",
        got=f"what looks like a token or a password in {'.'.join(path)}",
        fix="Remove it; log in with `hf auth login`, or set HF_TOKEN in the environment.",
    )
