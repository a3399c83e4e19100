"""A stretch is judged by what it does to each frequency, not by the window that it names."""

from __future__ import annotations

import torch

from linearard.errors import RopeError
from linearard.rope.table import RopeTable

_ROUNDING = 1e-4  # relative; float32 formulas of one table differ by some 1e-6


def check_slower(native: RopeTable, stretched: RopeTable, fix: str | None = None) -> None:
    """Refuse a table that is no stretch of another one.

    Args:
        native: the model's own table, at the end of its window.
        stretched: of as many pairs.
        fix: what to do about a pair that turns faster.

    Raises:
        RopeError: a pair turns faster than natively, pairs no longer stand in the order of their
            frequencies, or nothing differs.
    """
    before, after = native.inv_freq.double(), stretched.inv_freq.double()
    if stretched.same_as(native):
        raise RopeError(
            expected="stretched frequencies that differ from the native ones",
            got="the same table twice",
            fix="Check rope.factor and the scaling's other parameters.",
        )
    faster = (after > before * (1 + _ROUNDING)).nonzero().flatten().tolist()
    if faster:
        worst = max(faster, key=lambda pair: float(after[pair] / before[pair]))
        raise RopeError(
            expected="no rotary pair to turn faster than in the model as it is",
            got=f"{len(faster)} of {len(before)} that do; pair {worst} would turn "
            f"{_ratio(after, before, worst):.3g} times as fast",
            fix=fix or "Check rope.factor, rope.rope_theta and the scaling's other parameters.",
        )
    swapped = ((after.diff() > 0) & (before.diff() <= 0)).nonzero().flatten().tolist()
    if swapped:
        raise RopeError(
            expected="rotary pairs in the order of their frequencies",
            got=f"pair {swapped[0] + 1} faster than the one before it",
            fix="Give frequencies (or factors) highest frequency first.",
        )


def check_direction(plain: RopeTable, stretched: RopeTable) -> None:
    """Refuse a table that slows fast pairs more than slow ones, which tell long distances.

    Args:
        plain: frequencies without any scaling.
        stretched: of as many pairs.

    Raises:
        RopeError: the slowest pair is slowed less than the fastest.
    """
    slowed = plain.inv_freq.double() / stretched.inv_freq.double()
    if slowed[-1] < slowed[0] * (1 - _ROUNDING):
        raise RopeError(
            expected="a stretch that slows the slowest rotary pairs the most",
            got=f"the fastest pair slowed {slowed[0]:.3g} times and the slowest {slowed[-1]:.3g} times",
            fix="Give factors (or frequencies) highest frequency first, and yarn a beta_fast above "
            "beta_slow.",
        )


def _ratio(after: torch.Tensor, before: torch.Tensor, pair: int) -> float:
    return float(after[pair] / before[pair])
