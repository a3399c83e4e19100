"""The metadata of a checkpoint as it has to be: by whom it was written is not known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from linearard.errors import CheckpointError

_LARGEST_FILE = 64 << 20  # bytes; explicit frequency tables take a few hundred thousand


def read_json(path: Path) -> Any:
    """The content of a JSON file of a checkpoint.

    Raises:
        CheckpointError: it cannot be read, is too large or nested too deep, or is no valid JSON.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise ValueError(f"more than {_LARGEST_FILE >> 20} MiB")
        return json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            expected=f"valid JSON in {path}",
            got=" ".join(str(error).split())[:200],
            fix="Use another checkpoint.",
        ) from error


def check_metadata(metadata: dict[str, Any], path: Path) -> None:
    """Refuse metadata that lacks what a load compares, or has it in another form.

    Args:
        metadata: the content of the file, of the right format.
        path: the file, for messages.

    Raises:
        CheckpointError: the first part that is wrong is named.
    """
    for name, right, expected in (
        ("base_model.name", _is_text, "text"),
        ("base_model.fingerprint", _is_text, "text"),
        ("base_model.load_in_4bit", lambda v: v is None or isinstance(v, bool), "true or false"),
        (
            "base_model.resize_embeddings",
            lambda v: v is None or isinstance(v, bool),
            "true or false",
        ),
        ("rope.scaling", lambda v: isinstance(v, dict), "a mapping"),
        ("rope.tables", _are_tables, "frequency tables by kind of layer"),
        ("adapter", lambda v: isinstance(v, dict), "a mapping"),
        ("recipe", lambda v: v is None or isinstance(v, dict), "a mapping, or absent"),
        ("stage", lambda v: v is None or _is_text(v), "text, or absent"),
    ):
        value: Any = metadata
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not right(value):
            raise CheckpointError(
                expected=f"{name} in {path} to be {expected}",
                value=value,
                fix="Use another checkpoint.",
            )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30 and not math.isnan(value)


def _are_tables(tables: Any) -> bool:
    """Whether this is `{kind: {"inv_freq": [...], "attention_scaling": x}}` of finite numbers."""
    return isinstance(tables, dict) and all(
        isinstance(table, dict)
        and isinstance(table.get("inv_freq"), list)
        and all(map(_is_finite, [*table["inv_freq"], table.get("attention_scaling")]))
        for table in tables.values()
    )
