"""Frequency tables: of a scaling over plain frequencies, and over frequencies that are scaled already.

The first come from `transformers`' own functions, so that a restored model sees the numbers which
`transformers` and vLLM compute from the exported configuration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from linearard.rope.native import ORIGINAL, head_dim, native_parameters, native_window


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


def formula_table(scaling: dict[str, Any], config: Any, *, window: int, tokens: int) -> RopeTable:
    """The table of a complete scaling over plain frequencies.

    Args:
        scaling: `rope_type`, `rope_theta` and the keys of its formula; not `table`.
        config: the model's text configuration, of which the width of a head is read.
        window: tokens that `dynamic` counts from.
        tokens: length of the text, for `dynamic` and `longrope`.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = scaling["rope_type"]
    if kind == "default":  # which transformers leaves to each model
        scaling = scaling | {"factor": 1.0}
        kind = "linear"
    # Not a configuration: some check what is written into them (ModernBERT), some write their own
    # original window over a scaling's (Phi-3), and some say that head_dim is null (Mixtral).
    read = SimpleNamespace(
        rope_parameters=dict(scaling),
        head_dim=head_dim(config),
        max_position_embeddings=window,
        standardize_rope_params=lambda: None,
    )
    read.hidden_size, read.num_attention_heads = read.head_dim, 1
    inv_freq, attention = ROPE_INIT_FUNCTIONS[kind](read, torch.device("cpu"), seq_len=tokens)
    return RopeTable(inv_freq.detach().float().cpu().clone(), float(attention))


def native_table(config: Any, tokens: int | None = None) -> RopeTable:
    """The model's own table, as its configuration gives it.

    Args:
        config: the model's text configuration, untouched.
        tokens: length of the text; None: the whole window.
    """
    native, window = native_parameters(config), native_window(config)
    native.setdefault("rope_type", "default")
    if native["rope_type"] in ("yarn", "llama3", "longrope"):
        outside = getattr(config, ORIGINAL, None)  # Phi-3 puts this one above all
        native[ORIGINAL] = outside or native.get(ORIGINAL) or window
    return formula_table(native, config, window=window, tokens=tokens or window)


def plain_table(scaling: dict[str, Any], config: Any) -> RopeTable:
    """Frequencies of the model's base without any scaling, for as much of a head as `scaling` rotates."""
    plain = {"rope_type": "default", "rope_theta": native_parameters(config)["rope_theta"]}
    plain |= {k: v for k, v in scaling.items() if k == "partial_rotary_factor"}
    return formula_table(plain, config, window=1, tokens=1)


def table_over(native: RopeTable, scaling: dict[str, Any], config: Any, window: int) -> RopeTable:
    """The table of a scaling whose formula is applied to frequencies as they are.

    On plain frequencies it is the formula's own. `yarn` and `llama3` ask of each pair how often it turns
    in the window; the other formulas slow pair i by a number of its own, which is taken from a plain
    table. Attention factors multiply.

    Args:
        native: the frequencies that are scaled already.
        scaling: as for `formula_table`.
        config: the model's text configuration.
        window: tokens that the model reads with `native`; `factor` counts from here.
    """
    kind, factor = scaling["rope_type"], scaling["factor"]
    live = native.inv_freq.double()
    target = round(factor * window)
    own = formula_table(scaling | {ORIGINAL: window}, config, window=window, tokens=target)
    if kind in ("yarn", "llama3"):
        turns = live * window / (2 * math.pi)
        kept = _kept_by_yarn if kind == "yarn" else _kept_by_llama3
        share = kept(turns, scaling)
        slowed = live * share + live / factor * (1 - share)
    else:
        slowed = live * own.inv_freq.double() / plain_table(scaling, config).inv_freq.double()
    return RopeTable(slowed.float(), native.attention_scaling * own.attention_scaling)


def _kept_by_llama3(turns: Tensor, scaling: dict[str, Any]) -> Tensor:
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    return ((turns - low) / (high - low)).clamp(0, 1)


def _kept_by_yarn(turns: Tensor, scaling: dict[str, Any]) -> Tensor:
    """How much of each pair's frequency is kept: a ramp over the pairs' numbers, as in the paper's code."""
    fast, slow = scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1
    low, high = _pair_that_turns(fast, turns), _pair_that_turns(slow, turns)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * len(turns) - 1)
    pairs = torch.arange(len(turns), dtype=torch.float64)
    return 1 - ((pairs - low) / max(high - low, 1e-3)).clamp(0, 1)


def _pair_that_turns(times: float, turns: Tensor) -> float:
    """Number of the pair that turns so often, between pairs; beyond the ends as from the nearest two."""
    if len(turns) < 2:
        return 0.0
    wanted, logs = math.log(times), turns.log().tolist()
    after = next((i for i in range(1, len(logs)) if logs[i] <= wanted), len(logs) - 1)
    above, below = logs[after - 1], logs[after]
    return after - 1 + (above - wanted) / max(above - below, 1e-12)
