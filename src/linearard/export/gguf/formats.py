"""The number formats that a GGUF may be written in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from linearard.errors import RecipeError

#: Names on the command line; `auto` is the precision that the model was loaded in.
GGUF_TYPES = ("auto", "f32", "f16", "bf16", "q8_0")
_OF_DTYPE = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
}


def resolve_type(name: str, dtype: torch.dtype) -> str:
    """A name of `GGUF_TYPES` other than auto."""
    return _OF_DTYPE[dtype] if name == "auto" else name


def file_type(name: str) -> int:
    """The number that `general.file_type` holds."""
    import gguf

    return int(gguf.LlamaFileType[_FILE_TYPES[name]])


def precision_of(name: str) -> torch.dtype:
    """Precision in which trained weights are merged for a file of a type: blocks are made of float32."""
    return {kind: dtype for dtype, kind in _OF_DTYPE.items()}.get(name, torch.float32)


def tensor_type(shape: tuple[int, ...], name: str, *, whole: bool = False) -> Any:
    """Type of one tensor: matrices have the file's, vectors float32, matrices that no block fits float16.

    Args:
        shape: of the tensor.
        name: of the file's type.
        whole: keep it in float32 in a file of half precision, which would not hold what training changed.
    """
    import gguf

    if len(shape) < 2 or (whole and name in ("f16", "bf16")):
        return gguf.GGMLQuantizationType.F32
    if name == "q8_0" and shape[-1] % 32:
        return gguf.GGMLQuantizationType.F16
    return gguf.GGMLQuantizationType[name.upper()]


def packed(tensor: Tensor, kind: Any, name: str) -> np.ndarray:
    """The bytes of a tensor in a GGUF.

    Args:
        tensor: on the CPU.
        kind: a `gguf.GGMLQuantizationType`.
        name: for the message.

    Raises:
        RecipeError: a weight is larger than float16 holds.
    """
    import gguf

    values = tensor.float().contiguous().numpy()
    if kind == gguf.GGMLQuantizationType.F16 and np.abs(values).max(initial=0) > 65504:
        raise RecipeError(
            expected="weights that float16 can hold",
            got=f"{np.abs(values).max():.3g} in {name}",
            fix="Give --gguf-type bf16 or f32.",
        )
    return gguf.quants.quantize(values, kind)
