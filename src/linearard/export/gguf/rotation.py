"""A frequency table in the words of a GGUF.

llama.cpp rotates pair i by `base^(-2i/d) / factor / divisor_i`. Where its class reads divisors, the file
says the base, no scaling, and the divisors that give the table; nothing then depends on the length of the
text or on a flag. YaRN's attention factor multiplies cosine and sine, so scores get its square: the
queries' weights are multiplied by that, which every reader follows, and no key says it again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from linearard.errors import RopeError
from linearard.export.gguf.families import Family
from linearard.rope import RopeTable

_CLOSE = 2e-6  # relative, of frequencies in float32


@dataclass(frozen=True)
class Rotation:
    """What the file says about RoPE.

    Attributes:
        base: of the plain frequencies.
        divisors: float32 `[rotary_dim / 2]`, or nothing.
        linear: factor of linear scaling, 1 for none.
        yarn: factor and original window of YaRN's usual ramp, or nothing.
        query_scale: what the queries' weights are multiplied by.
    """

    base: float
    query_scale: float
    divisors: np.ndarray | None = None
    linear: float = 1.0
    yarn: tuple[float, int] | None = None


def rotation_of(table: RopeTable, scaling: dict[str, Any], family: Family) -> Rotation:
    """Write a table in the words of a GGUF.

    Args:
        table: the stretched one.
        scaling: the checked scaling that it is of.
        family: what the reader's class can do.

    Raises:
        RopeError: the class cannot rotate so.
    """
    frequencies = table.inv_freq.double().numpy()
    square = table.attention_scaling**2
    if family.table:
        base = float(scaling["rope_theta"])
        divisors = (_plain(base, len(frequencies)) / frequencies).astype(np.float32)
        return Rotation(base, square, divisors)
    geometric = _geometric(frequencies)
    if geometric is not None:
        return Rotation(geometric[0], square, linear=geometric[1])
    if family.yarn and _has_usual_ramp(scaling):
        window = int(scaling["original_max_position_embeddings"])
        return Rotation(float(scaling["rope_theta"]), square, yarn=(scaling["factor"], window))
    usual = ", or yarn with its usual beta_fast 32 and beta_slow 1" if family.yarn else ""
    raise RopeError(
        expected=f"a scaling that llama.cpp's {family.arch} class can compute: linear or dynamic{usual}",
        got=f"rope_type {scaling['rope_type']!r} with another table",
        fix="Use the merged format with transformers or vLLM; llama.cpp reads tables for Llama, Mistral, "
        "Qwen2 and Phi-3 only.",
    )


def _plain(base: float, pairs: int) -> np.ndarray:
    return base ** -(np.arange(pairs, dtype=np.float64) / pairs)


def _geometric(frequencies: np.ndarray) -> tuple[float, float] | None:
    """Base and linear factor of frequencies that fall by one ratio, nothing for others."""
    pairs = len(frequencies)
    ratio = (frequencies[-1] / frequencies[0]) ** (1 / (pairs - 1)) if pairs > 1 else 0.5
    base, factor = ratio**-pairs, 1 / frequencies[0]
    there = _plain(base, pairs) / factor
    return (base, factor) if np.allclose(there, frequencies, rtol=_CLOSE, atol=0) else None


def _has_usual_ramp(scaling: dict[str, Any]) -> bool:
    usual = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
    return scaling["rope_type"] == "yarn" and all(
        scaling.get(key, value) == value for key, value in usual.items()
    )


def spoken_table(rotation: Rotation, pairs: int) -> torch.Tensor:
    """The frequencies that a reader computes from what the file says, float64 `[pairs]`.

    YaRN's are computed as llama.cpp does, between its two corners.
    """
    plain = _plain(rotation.base, pairs)
    if rotation.divisors is not None:
        plain = plain / rotation.divisors.astype(np.float64)
    if rotation.yarn is not None:
        factor, window = rotation.yarn
        low, high = (_corner(turns, window, rotation.base, pairs) for turns in (32, 1))
        low, high = max(0, math.floor(low)), min(2 * pairs - 1, math.ceil(high))
        ramp = np.clip((np.arange(pairs) - low) / max(0.001, high - low), 0, 1)
        plain = plain / factor * ramp + plain * (1 - ramp)
    return torch.from_numpy(plain / rotation.linear)


def _corner(turns: float, window: int, base: float, pairs: int) -> float:
    """The pair that turns so often in the window."""
    return pairs * math.log(window / (turns * 2 * math.pi)) / math.log(base)
