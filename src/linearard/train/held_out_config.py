"""What a stage looks at while it trains, and what it decides by that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linearard.errors import RecipeError
from linearard.fields import described


@dataclass
class HeldOutConfig:
    """Held-out windows that a stage is watched by, and the decisions that they make.

    The short windows measure KL to the original; the long one measures next-token loss, and that of
    passages which come back in it. Nothing is trained on them.
    """

    window: int = described(2048, "Tokens of a short held-out window, in the native window.")
    sequences: int = described(4, "How many short held-out windows; 0: the stage is not watched.")
    long_window: int | None = described(
        None, "Tokens of a long held-out window, up to the stretched window; null: none is read."
    )
    long_sequences: int = described(1, "How many long held-out windows.")
    every: int = described(
        0, "Look every this many optimizer steps; 0: only before and after the stage."
    )
    rate_trials: int = described(
        0,
        "Before the stage, try learning_rate and up to this many rates in all, by factors of two, for "
        "rate_steps steps each from the same weights, and train at the one that gains most on the "
        "held-out windows; 0: none.",
    )
    rate_steps: int = described(8, "Optimizer steps of one trial.")
    shares: list[float] = described(
        list,
        "At the end, try each of these shares of what the stage changed, and keep the one that is best "
        "on the held-out windows. Empty: `keep` alone decides.",
    )

    def __post_init__(self) -> None:
        for name, least in (("window", 2), ("sequences", 0), ("long_sequences", 1), ("every", 0)):
            self._check(name, _is_whole(getattr(self, name), least), f"a whole number >= {least}")
        for name, least in (("rate_trials", 0), ("rate_steps", 1)):
            self._check(name, _is_whole(getattr(self, name), least), f"a whole number >= {least}")
        right = self.long_window is None or _is_whole(self.long_window, 2)
        self._check("long_window", right, "null or a whole number >= 2")
        listed = isinstance(self.shares, list) and all(
            isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1
            for share in self.shares
        )
        self._check("shares", listed, "a list of shares above 0, at most 1")

    def _check(self, name: str, right: bool, expected: str) -> None:
        if not right:
            raise RecipeError(
                expected=f"held_out.{name} to be {expected}",
                got=repr(getattr(self, name)),
                fix=f"Set held_out.{name} of the stage.",
            )


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
