"""The stretched RoPE as every reader understands it.

transformers 5 reads `rope_parameters`; transformers 4 and vLLM read `rope_scaling` and `rope_theta`. Both
are written. A restored model was trained for one table of frequencies, so scalings whose table depends on
the length of the text are written in an equivalent form that does not:

- `dynamic` at its target window is plain RoPE with a larger base: `rope_type: default`, larger `rope_theta`;
- `longrope` gets equal short and long factors;
- an explicit table is `longrope` with the factors that produce it, and so is any scaling of a model whose
  configuration knows no other (Phi-3).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from linearard.model import write_json
from linearard.rope import RopeTable, RopeViews

_ORIGINAL = "original_max_position_embeddings"
_LONGROPE_ONLY = ("phi3", "phi4_multimodal")
_TYPE_AND_FACTOR = (
    "olmo",
    "olmo2",
    "olmo3",
)  # the only keys their `rope_scaling` has in transformers 4


def exported_rope(rope: RopeViews, model_type: str = "") -> dict[str, Any]:
    """Flat `rope_parameters` of the stretched view, with one table for every length.

    Args:
        rope: the views.
        model_type: of the configuration; some types accept few scalings.
    """
    scaling = dict(rope.scaling)
    tables = rope.tables("stretched")
    table = tables.get("full_attention", tables.get(""))
    kind, theta = scaling["rope_type"], scaling["rope_theta"]
    partial = {k: v for k, v in scaling.items() if k == "partial_rotary_factor"}
    if kind in ("longrope", "table") or model_type in _LONGROPE_ONLY:
        return _as_longrope(table, theta, rope) | partial | rope.carried
    if kind in ("default", "dynamic"):
        base = theta if kind == "default" else _base_of(table)
        return {"rope_type": "default", "rope_theta": base} | partial | rope.carried
    if kind == "yarn":
        scaling["attention_factor"] = table.attention_scaling
        # Older vLLM multiplies its own default, 0.1 ln(factor) + 1, by this; transformers ignores it.
        scaling["attn_factor"] = table.attention_scaling / (0.1 * math.log(scaling["factor"]) + 1)
    if kind == "linear" and _ORIGINAL not in rope.carried:
        scaling.pop(
            _ORIGINAL, None
        )  # no key of its formula; the window itself is exported beside it
    return scaling


def write_configuration(config: Any, rope: RopeViews, folder: Path) -> None:
    """Write `config.json` with the stretched RoPE and window.

    Args:
        config: the base model's configuration; left as it is.
        rope: its views.
        folder: receives `config.json`.
    """
    config.save_pretrained(folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content.pop("quantization_config", None)
    # Multimodal configurations keep the language model's part one level down.
    text = content.get("text_config", content)
    flat = exported_rope(rope, text["model_type"])
    nested = text.get("rope_parameters") or {}
    if "full_attention" in nested:
        text["rope_parameters"] = {**nested, "full_attention": flat}
        text["rope_local_base_freq"] = nested.get("sliding_attention", flat)["rope_theta"]
    else:
        text["rope_parameters"] = flat
    # Beside the scaling: where transformers 4 looks, and 5 too once there is a `rope_scaling`.
    beside = ("rope_theta", "partial_rotary_factor")
    text |= {key: flat[key] for key in beside if key in flat}
    if _ORIGINAL in text:  # Phi-3 puts this one above all
        text[_ORIGINAL] = flat.get(_ORIGINAL, rope.native_window)
    older = {k: v for k, v in flat.items() if k not in beside}
    if text["model_type"] in _TYPE_AND_FACTOR and flat["rope_type"] == "linear":
        older = {"type": "linear", "factor": flat["factor"]}
    text["rope_scaling"] = None if flat["rope_type"] == "default" else older
    text["max_position_embeddings"] = rope.target_window
    write_json(path, content)


def write_tokenizer(tokenizer: Any, window: int, folder: Path) -> None:
    """Save a tokenizer for the stretched window, in words that transformers 4 reads too.

    Args:
        tokenizer: left as it is.
        window: tokens the stretched model is meant to read.
        folder: receives its files.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content["model_max_length"] = window
    if content.get("tokenizer_class") == "TokenizersBackend":  # the name in transformers 5
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(content.get("extra_special_tokens"), list):  # the same; a mapping in 4
        content["additional_special_tokens"] = content.pop("extra_special_tokens")
    write_json(path, content)


def _base_of(table: RopeTable) -> float:
    dim = 2 * table.inv_freq.numel()
    return float(table.inv_freq[-1].double() ** (-dim / (dim - 2)))


def _as_longrope(table: RopeTable, theta: float, rope: RopeViews) -> dict[str, Any]:
    dim = 2 * table.inv_freq.numel()
    plain = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    factors = (plain / table.inv_freq.double()).tolist()
    attention = table.attention_scaling
    return {
        "rope_type": "longrope",
        "rope_theta": theta,
        "factor": rope.scaling["factor"],
        "short_factor": factors,
        "long_factor": factors,
        _ORIGINAL: rope.native_window,
        "attention_factor": attention,
        "short_mscale": attention,  # the names under which vLLM reads it
        "long_mscale": attention,
    }
