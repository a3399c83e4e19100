"""RoPE scalings: what a user may ask for, and the frequency table it means.

A scaling is given as in `transformers`' `rope_parameters` (`rope_type` and its keys), or as an explicit
table (`rope_type: table`). The frequencies themselves come from `transformers`' own functions, so a
restored model sees the numbers that `transformers` and vLLM will compute from the exported configuration.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linearard.errors import RopeError

#: Required and optional keys per scaling, beside those allowed everywhere.
_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, set()),
    "yarn": (
        {"factor"},
        {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    ),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, set()),
    "longrope": ({"factor", "long_factor"}, {"short_factor", "attention_factor"}),
    "table": ({"factor", "inv_freq"}, {"attention_factor"}),
}
#: The window the stretch counts from. transformers reads it for yarn, llama3 and longrope only.
_ORIGINAL = "original_max_position_embeddings"
_EVERYWHERE = {"rope_type", "rope_theta", "partial_rotary_factor", _ORIGINAL}


@dataclass(frozen=True)
class RopeTable:
    """What a rotary module multiplies positions with.

    Attributes:
        inv_freq: float32 `[rotary_dim / 2]`, radians per position, on the CPU.
        attention_scaling: factor on cos and sin (YaRN's and LongRoPE's attention factor).
    """

    inv_freq: Tensor
    attention_scaling: float

    def same_as(self, other: RopeTable, rtol: float = 1e-5) -> bool:
        """Whether both tables rotate alike up to `rtol` per frequency."""
        return (
            self.inv_freq.shape == other.inv_freq.shape
            and torch.allclose(self.inv_freq, other.inv_freq, rtol=rtol, atol=0.0)
            and math.isclose(self.attention_scaling, other.attention_scaling, rel_tol=rtol)
        )


def native_parameters(config: Any) -> dict[str, Any]:
    """The model's own `rope_parameters` for full attention, of a `transformers` text configuration.

    Configurations that keep one entry per layer type (Gemma 3) answer with `full_attention`'s.
    """
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise RopeError(
            expected="a model with rotary position embeddings (RoPE)",
            got=f"model_type {config.model_type!r}, whose configuration has no rope_parameters",
            fix="Choose a RoPE decoder such as Llama, Mistral, Qwen, OLMo2 or Gemma.",
        )
    return dict(parameters.get("full_attention", parameters))


def depends_on_length(config: Any) -> bool:
    """Whether a native table changes as the text grows, so that its module reads the length on the host.

    Args:
        config: the model's text configuration, untouched.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    found = [parameters, *(own for own in parameters.values() if isinstance(own, dict))]
    return any(own.get("rope_type") in ("dynamic", "longrope") for own in found)


def native_window(config: Any, scaling: dict[str, Any] | None = None) -> int:
    """Tokens the model was trained to read: `max_position_embeddings` before any stretch.

    A few configurations promise more than the training held (Mistral-7B-v0.1: 32768, trained on 8192).
    A scaling of such a model names the true window as its `original_max_position_embeddings`. Where the
    model's own RoPE is scaled already, that key is a parameter of its formula and says nothing of this.
    """
    if scaling and native_parameters(config).get("rope_type", "default") == "default":
        return int(scaling.get(_ORIGINAL) or config.max_position_embeddings)
    return int(config.max_position_embeddings)


def check_scaling(scaling: dict[str, Any], config: Any) -> dict[str, Any]:
    """Validate a requested scaling against a model's configuration.

    Args:
        scaling: as in `rope_parameters`, or `{"rope_type": "table", "factor": f, "inv_freq": [...]}`
            where `inv_freq` may also name a JSON file holding the list.
        config: the model's text configuration, untouched.

    Returns:
        The complete scaling: `rope_theta`, `partial_rotary_factor` and the original window filled in.

    Raises:
        RopeError: unknown type or key, factor <= 1, a value that is no positive number, wrong list
            length, a native scaling that the requested one would silently discard, or no stretch.
    """
    scaling = dict(scaling)
    kind = scaling.get("rope_type", scaling.pop("type", None))
    if kind not in tuple(_KEYS):
        raise RopeError(
            expected=f"rope_type to be one of {', '.join(_KEYS)}",
            got=repr(kind),
            fix="Set rope.rope_type in the recipe.",
        )
    scaling["rope_type"] = kind
    required, optional = _KEYS[kind]
    known = required | optional | _EVERYWHERE
    for key in scaling:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else "Remove it."
            raise RopeError(
                expected=f"{kind!r} keys among {', '.join(sorted(known))}", got=repr(key), fix=hint
            )
    missing = sorted(required - scaling.keys())
    if missing:
        raise RopeError(
            expected=f"{', '.join(sorted(required))} for rope_type {kind!r}",
            got=f"no {', '.join(missing)}",
            fix="Add it under rope in the recipe.",
        )
    factor = scaling["factor"]
    if not _is_positive(factor) or not factor > 1:
        raise RopeError(
            expected="a stretch factor above 1",
            got=repr(factor),
            fix="Set rope.factor to target window / native window, for instance 8.",
        )
    scaling["factor"] = float(factor)
    native = native_parameters(config)
    if _ORIGINAL in scaling:
        _check_original(scaling[_ORIGINAL], config)
    _check_numbers(scaling)
    native_kind = native.get("rope_type", "default")
    if native_kind not in ("default", kind) and kind != "table":
        raise RopeError(
            expected=f"rope_type {native_kind!r} (the model's own) or 'table'",
            got=f"{kind!r}, which would discard the model's {native_kind!r} scaling",
            fix=f"Give the complete {native_kind!r} parameters with a larger factor, or an explicit table.",
        )
    scaling.setdefault("rope_theta", native.get("rope_theta"))
    if native.get("partial_rotary_factor") is not None:
        scaling.setdefault("partial_rotary_factor", native["partial_rotary_factor"])
    if kind in ("yarn", "llama3", "longrope"):
        own = native.get(_ORIGINAL) if native_kind == kind else None
        scaling.setdefault(_ORIGINAL, own or native_window(config))
    half = _rotary_half(config, scaling)
    if kind == "longrope":
        # One table for every length: the one for long text. See `compute_table`.
        scaling["short_factor"] = scaling["long_factor"]
        _check_list("long_factor", scaling["long_factor"], half)
    if kind == "table":
        scaling["inv_freq"] = _read_list(scaling["inv_freq"])
        _check_list("inv_freq", scaling["inv_freq"], half)
    native_tokens, target = native_window(config, scaling), target_window(scaling, config)
    if target <= native_tokens:  # possible where the model's own RoPE is scaled already
        raise RopeError(
            expected=f"a factor that stretches beyond the model's window of {native_tokens} tokens",
            got=f"{scaling['factor']:g}, which gives {target}",
            fix=f"Raise rope.factor: it counts from the window before the model's own {kind!r} scaling.",
        )
    return scaling


def target_window(scaling: dict[str, Any], config: Any) -> int:
    """Tokens the stretched model is meant to read: factor times the native window.

    A scaling that names its own `original_max_position_embeddings` counts from there.
    """
    original = scaling.get(_ORIGINAL) or native_window(config)
    native = native_parameters(config)
    if scaling["rope_type"] == native.get("rope_type") == "linear":
        original /= native["factor"]  # the native window holds the native factor already
    return round(scaling["factor"] * original)


def compute_table(scaling: dict[str, Any], config: Any) -> RopeTable:
    """The frequency table of a checked scaling.

    `dynamic` and `longrope` change their table with the length of the text in `transformers`. A model can
    be trained for one table only, so both are taken at the target window, which is also what vLLM does
    for `dynamic`; the export writes a configuration in which the table is the same at every length.
    """
    kind = scaling["rope_type"]
    if kind == "table":
        return RopeTable(
            torch.tensor(scaling["inv_freq"], dtype=torch.float32),
            float(scaling.get("attention_factor", 1.0)),
        )
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stretched = copy.deepcopy(config)
    stretched.rope_parameters = dict(scaling)
    if kind == "dynamic":  # its formula counts from the configuration's window
        stretched.max_position_embeddings = native_window(config, scaling)
    target = target_window(scaling, config)
    inv_freq, attention_scaling = ROPE_INIT_FUNCTIONS[kind](
        stretched, torch.device("cpu"), seq_len=target
    )
    return RopeTable(inv_freq.detach().float().cpu().clone(), float(attention_scaling))


def _rotary_half(config: Any, scaling: dict[str, Any]) -> int:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head_dim * (scaling.get("partial_rotary_factor") or 1.0)) // 2


def _check_original(value: Any, config: Any) -> None:
    longest = int(config.max_position_embeddings)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 < value <= longest:
        raise RopeError(
            expected=f"{_ORIGINAL} from 2 to {longest}, the model's max_position_embeddings",
            got=repr(value),
            fix="Give the tokens the model was trained to read, or leave the key out.",
        )


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _check_numbers(scaling: dict[str, Any]) -> None:
    for key, value in scaling.items():
        if key in ("rope_type", "inv_freq", "long_factor", "short_factor"):
            continue
        good = isinstance(value, bool) if key == "truncate" else _is_positive(value)
        if not good:
            raise RopeError(
                expected=f"{key} to be {'true or false' if key == 'truncate' else 'a positive number'}",
                got=repr(value),
                fix=f"Set rope.{key} in the recipe, or leave it out.",
            )
    low, high = (scaling.get(f"{end}_freq_factor", 0) for end in ("low", "high"))
    if low and not low < high:
        raise RopeError(
            expected="low_freq_factor below high_freq_factor",
            got=f"{low} and {high}",
            fix="Set rope.low_freq_factor and rope.high_freq_factor; Llama 3.1 has 1 and 4.",
        )


def _check_list(name: str, values: Any, length: int) -> None:
    numbers = isinstance(values, list) and all(map(_is_positive, values))
    if not numbers or len(values) != length:
        got = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
        raise RopeError(
            expected=f"{name} to be a list of {length} positive numbers (rotary_dim / 2)",
            got=got,
            fix="One number per rotated pair of dimensions, highest frequency first.",
        )


def _read_list(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(Path(value).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise RopeError(
            expected="inv_freq to be a list or a JSON file holding one",
            got=f"{value!r} ({error})",
            fix="Check the path in rope.inv_freq.",
        ) from None
