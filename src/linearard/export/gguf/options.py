"""How a GGUF is written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from linearard.model import ModelConfig, gguf_path


@dataclass(frozen=True)
class GgufOptions:
    """How a GGUF is written.

    Attributes:
        type: one of `GGUF_TYPES`.
        tokenizer: a GGUF of the base model whose tokenizer is copied; where nothing is given, the base
            itself if it is a GGUF, else the tokenizer of transformers is written.
    """

    type: str = "auto"
    tokenizer: Path | None = None

    def with_source(self, base: ModelConfig) -> GgufOptions:
        """The same, with the GGUF that the tokenizer is copied from, if there is one."""
        return dataclasses.replace(self, tokenizer=self.tokenizer or gguf_path(base))
