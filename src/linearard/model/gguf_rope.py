"""RoPE of a GGUF as its metadata and tensors say: `transformers` reads the base alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from linearard.errors import ModelError
from linearard.model.gguf_file import GgufFile

_SCALING = "{arch}.rope.scaling."
#: What some readers follow and others do not, so that no one can say which model the file means.
_AMBIGUOUS = ("alpha", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier")
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # of all Llama 3 models
_LLAMA3_WINDOW = 8192


def apply_rope(config: Any, file: GgufFile, name: str) -> None:
    """Write what a GGUF says of its RoPE into the configuration that `transformers` made of it.

    Linear, YaRN and Llama 3's scaling become entries of their own type, any other `rope_freqs.weight` one of
    type longrope with equal factors, whose table never changes.

    Args:
        config: text configuration, changed in place.
        file: the GGUF.
        name: how the user named the model.

    Raises:
        ModelError: the file says what this version of `transformers` cannot express, or contradicts itself.
    """
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        return
    _check_width(config, parameters, file, name)
    _check_sliding_window(config, file, name)
    scaling = _scaling(config, file, name)
    if "rope_type" not in parameters and any(isinstance(v, dict) for v in parameters.values()):
        if scaling:
            raise _unreadable(name, f"{scaling['rope_type']} scaling", "layers of several types")
        return
    if parameters.get("rope_type", "default") != "default":
        return  # a version of transformers that reads the scaling itself
    base = file.value("{arch}.rope.freq_base")
    theta = {} if base is None else {"rope_theta": float(base)}
    config.rope_parameters = {**parameters, **theta, **scaling}


def _scaling(config: Any, file: GgufFile, name: str) -> dict[str, Any]:
    """Entries of `rope_parameters` beside the base; none without a scaling."""
    kind = file.value(_SCALING + "type", "linear")  # a factor alone is linear to llama.cpp
    factor = file.value(_SCALING + "factor") or file.value("{arch}.rope.scale_linear") or 1.0
    attention = float(file.value(_SCALING + "attn_factor", 1.0))
    freqs = file.tensor("rope_freqs.weight")
    said = [key for key in _AMBIGUOUS if file.value(_SCALING + key) is not None]
    if said:
        raise _unreadable(name, f"rope.scaling.{said[0]}", "no reading that all programs share")
    if any("rope_factors_" in tensor for tensor in file.tensor_names):
        raise _unreadable(name, "rope_factors tensors", "tables for short and for long text")
    if kind not in ("none", "linear", "yarn"):
        raise _unreadable(name, f"rope.scaling.type {kind!r}", "another scaling")
    if kind == "none":
        factor = 1.0
    window = int(config.max_position_embeddings)
    if kind == "yarn" and factor != 1:
        if freqs is not None:
            raise _unreadable(name, "yarn and rope_freqs.weight", "two scalings at once")
        return _yarn(file, float(factor), attention, window)
    if freqs is None and attention == 1:
        return {} if factor == 1 else {"rope_type": "linear", "factor": float(factor)}
    base = float(config.rope_parameters.get("rope_theta", file.value("{arch}.rope.freq_base", 1e4)))
    width = int(file.value("{arch}.rope.dimension_count", 0)) or _width(config)
    freqs = np.ones(width // 2, np.float32) if freqs is None else freqs
    if len(freqs) != width // 2 or not (np.isfinite(freqs).all() and (freqs > 0).all()):
        raise _unreadable(
            name, f"rope_freqs.weight of {len(freqs)} numbers", f"{width} rotated dimensions"
        )
    if factor == 1 and attention == 1 and (freqs == 1).all():
        return {}
    if factor == 1 and attention == 1 and (found := _llama3(freqs, base, width)):
        return found
    factors = [float(value) * float(factor) for value in freqs]
    return {
        "rope_type": "longrope",
        "factor": 1.0,
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": attention,
        "original_max_position_embeddings": window,
    }


def _yarn(file: GgufFile, factor: float, attention: float, window: int) -> dict[str, Any]:
    # llama.cpp has the paper's temperature beside the factor of the file.
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": int(
            file.value(_SCALING + "original_context_length", window)
        ),
        "attention_factor": attention * (1 + 0.1 * math.log(factor)),
        "beta_fast": float(file.value(_SCALING + "yarn_beta_fast", 32.0)),
        "beta_slow": float(file.value(_SCALING + "yarn_beta_slow", 1.0)),
    }


def _llama3(freqs: np.ndarray, base: float, width: int) -> dict[str, Any] | None:
    """Llama 3's scaling, where these are its factors."""
    factor = round(float(freqs.max()), 4)  # 8 or 32, of numbers in float32
    wavelength = 2 * math.pi * base ** (np.arange(0, width, 2) / width)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    share = np.clip((_LLAMA3_WINDOW / wavelength - low) / (high - low), 0, 1)
    if not np.allclose(1 / freqs, share + (1 - share) / factor, rtol=1e-5):
        return None
    window = {"original_max_position_embeddings": _LLAMA3_WINDOW}
    return {"rope_type": "llama3", "factor": factor} | _LLAMA3 | window


def _width(config: Any) -> int:
    """Dimensions of a head that the configuration rotates."""
    if width := getattr(config, "qk_rope_head_dim", None):
        return width
    whole = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = config.rope_parameters.get("partial_rotary_factor")
    share = getattr(config, "partial_rotary_factor", None) if share is None else share
    return int(whole * (1.0 if share is None else share))


def _check_width(config: Any, parameters: dict[str, Any], file: GgufFile, name: str) -> None:
    width = file.value("{arch}.rope.dimension_count")
    layered = "rope_type" not in parameters and any(
        isinstance(v, dict) for v in parameters.values()
    )
    if width is None or layered or getattr(config, "qk_rope_head_dim", None):
        return
    size, heads = file.value("{arch}.embedding_length"), file.value("{arch}.attention.head_count")
    head = file.value("{arch}.attention.key_length") or (
        size // heads if isinstance(size, int) and isinstance(heads, int) and heads else None
    )
    # Some versions of transformers take the rotated dimensions for the whole head.
    made = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if int(width) != _width(config) or head not in (None, made):
        raise _unreadable(
            name,
            f"rope.dimension_count {int(width)} of heads of {head or made}",
            f"a {config.model_type} that rotates {_width(config)} of {made}",
        )


def _check_sliding_window(config: Any, file: GgufFile, name: str) -> None:
    window = file.value("{arch}.attention.sliding_window")
    if not isinstance(window, int) or not 0 < window < config.max_position_embeddings:
        return
    if getattr(config, "sliding_window", None) == window:
        return
    if "sliding_attention" in (getattr(config, "layer_types", None) or []):
        config.sliding_window = window
        return
    raise _unreadable(
        name, f"attention.sliding_window {window}", f"a {config.model_type} without such a window"
    )


def _unreadable(name: str, said: str, made: str) -> ModelError:
    return ModelError(
        expected=f"a GGUF whose RoPE and attention this transformers can express ({name})",
        got=f"{said}, which becomes {made}",
        fix="Name the model's folder or hub id, from which the GGUF was made.",
    )
