"""What a model is called, beside what it is found by."""

from __future__ import annotations

import re
from pathlib import Path

from linearard.errors import UserError
from linearard.model.load import ModelConfig, gguf_path, names_gguf

_QUANTISATION = re.compile(r"[.-](?:i?q\d\w*|bf16|f16|f32)$", re.IGNORECASE)


def display_name(name: str) -> str:
    """A model's name for people.

    Args:
        name: as in `model.name`. Of a GGUF file the name is that of the file, without how it is quantised;
            of a folder its own; a hub id stays as it is.
    """
    if names_gguf(name):
        try:
            path = gguf_path(ModelConfig(name=name))
        except UserError:  # moved since; a name is all that is asked of it
            path = None
        file = Path(path or name.removeprefix("package:")).name
        return _QUANTISATION.sub("", file.removesuffix(".gguf"))
    local = Path(name).is_dir() or name.startswith(("/", ".", "~"))
    return (Path(name).name if local else name) or "model"
