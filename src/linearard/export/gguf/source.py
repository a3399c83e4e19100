"""What a GGUF of the base model says about it, for the GGUF of the restored one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_COPIED = ("license", "license_name", "languages", "organization", "basename")


def about_base(source: Path | None) -> dict[str, Any]:
    """Keys of the section `general`, without their prefix.

    Args:
        source: a GGUF of the base model, or nothing.
    """
    found: dict[str, Any] = {"finetune": "linearard"}
    if source is None:
        return found
    import gguf

    reader = gguf.GGUFReader(source)
    for key in _COPIED:
        field = reader.get_field(f"general.{key}")
        if field is not None:
            found[key] = field.contents()
    return found
