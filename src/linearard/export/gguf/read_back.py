"""What a GGUF says about RoPE, as llama.cpp computes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from linearard.export.gguf.rotation import Rotation, spoken_table


@dataclass(frozen=True)
class GgufRotation:
    """What a reader without flags does.

    Attributes:
        architecture: the reader's model class.
        frequencies: float64 `[rotary_dim / 2]`, radians per position.
        window: tokens that it says it can read.
    """

    architecture: str
    frequencies: Tensor
    window: int


def gguf_rotation(path: str | Path) -> GgufRotation:
    """Read the rotation of a GGUF.

    Args:
        path: of a file with one of the architectures that `write_gguf` writes.
    """
    import gguf

    reader = gguf.GGUFReader(path)

    def value(key: str, default: Any = None) -> Any:
        field = reader.get_field(key)
        return default if field is None else field.contents()

    architecture = value("general.architecture")

    def own(key: str, default: Any = None) -> Any:
        return value(f"{architecture}.{key}", default)

    tensors = {t.name: t.data for t in reader.tensors if t.name.startswith("rope_f")}
    divisors = tensors.get("rope_freqs.weight", tensors.get("rope_factors_long.weight"))
    kind, factor = own("rope.scaling.type", "none"), own("rope.scaling.factor", 1.0)
    window = own("context_length")
    original = own("rope.scaling.original_context_length", window)
    rotation = Rotation(
        base=own("rope.freq_base", 10000.0),
        query_scale=1.0,
        divisors=None if divisors is None else np.array(divisors),
        linear=factor if kind == "linear" else 1.0,
        yarn=(factor, original) if kind == "yarn" else None,
    )
    pairs = own("rope.dimension_count") // 2
    return GgufRotation(architecture, spoken_table(rotation, pairs), window)
