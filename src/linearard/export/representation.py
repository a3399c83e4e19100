"""The stretched RoPE in the words that most readers understand alike.

A restored model was trained for one table and one window. Every reader must rotate by that table at every
length, and say that window without being told. What they do differently (see docs/reference/readers.md):

- `dynamic` and `longrope` change their table with the length of the text;
- transformers 4.51 computes YaRN's factor anew as window over original window (4.57 does not), and 4.50
  and earlier count its ramp from the stretched window;
- vLLM multiplies the window by the factor of `linear`, vLLM before 0.33 and others that of `yarn`;
- llama.cpp's converter knows `linear`, `yarn` with its usual ramp, and for the Llama class `llama3`.

So `dynamic` is written as plain RoPE with a larger base, `linear` of the Llama class as `llama3` whose
border lies above every frequency, and every other table that is not plain YaRN as `longrope` with equal
short and long factors.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from linearard.architectures import architecture
from linearard.rope import RopeTable, RopeViews

_ORIGINAL = "original_max_position_embeddings"


def exported_rope(
    rope: RopeViews, model_type: str = "", window: int | None = None
) -> dict[str, Any]:
    """Flat `rope_parameters` of the stretched view, with one table for every length.

    Args:
        rope: the views.
        model_type: of the configuration; some types accept few scalings.
        window: tokens that the model says it reads; the target window where nothing is given.
    """
    scaling = dict(rope.scaling)
    tables = rope.tables("stretched")
    table = tables.get("full_attention", tables.get(""))
    kind, theta = scaling["rope_type"], scaling["rope_theta"]
    partial = {k: v for k, v in scaling.items() if k == "partial_rotary_factor"}
    known = architecture(model_type)
    own_longrope = kind in ("longrope", "table") or known.in_transformers_4.longrope_alone
    plain_yarn = _is_plain_yarn(rope, table, window) if kind == "yarn" else False
    if own_longrope or (kind == "yarn" and not plain_yarn and not _moves_softmax(rope)):
        return _as_longrope(table, theta, rope) | partial | rope.carried
    if kind in ("default", "dynamic"):
        base = theta if kind == "default" else _base_of(table)
        return {"rope_type": "default", "rope_theta": base} | partial | rope.carried
    if kind == "yarn":
        scaling["attention_factor"] = table.attention_scaling
        # SGLang and older vLLM multiply their own default, 0.1 ln(factor) + 1, by this
        scaling["attn_factor"] = 1.0
    if kind == "linear":
        if known.llama_class:
            return _as_llama3(scaling["factor"], theta, rope) | partial | rope.carried
        if _ORIGINAL not in rope.carried:  # no key of its formula; the window is exported beside it
            scaling.pop(_ORIGINAL, None)
    return scaling


def _moves_softmax(rope: RopeViews) -> bool:
    """Whether the model draws its softmax scale from YaRN's keys (DeepSeek), which no other type has."""
    return rope.softmax_scales("stretched") != rope.softmax_scales("native")


def _is_plain_yarn(rope: RopeViews, table: RopeTable, window: int | None) -> bool:
    """Whether YaRN has its usual ramp and attention factor, and a window that is its factor's."""
    scaling = rope.scaling
    usual = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
    attention = 0.1 * math.log(scaling["factor"]) + 1
    return (
        all(scaling.get(key, value) == value for key, value in usual.items())
        and not {"mscale", "mscale_all_dim"} & scaling.keys()
        and math.isclose(table.attention_scaling, attention, rel_tol=1e-6)
        and (window or rope.target_window) == scaling["factor"] * scaling[_ORIGINAL]
    )


def _base_of(table: RopeTable) -> float:
    dim = 2 * table.inv_freq.numel()
    return float(table.inv_freq[-1].double() ** (-dim / (dim - 2)))


def _as_llama3(factor: float, theta: float, rope: RopeViews) -> dict[str, Any]:
    # Frequencies whose wave is longer than original / low tokens are divided: here longer than one token,
    # and the shortest wave of RoPE has 2 pi.
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": float(rope.native_window),
        "high_freq_factor": 2.0 * rope.native_window,
        _ORIGINAL: rope.native_window,
    }


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
        "short_mscale": attention,  # the names under which vLLM and SGLang read it
        "long_mscale": attention,
    }
