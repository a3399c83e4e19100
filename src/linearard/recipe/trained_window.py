"""How long a text a recipe trains a model for."""

from __future__ import annotations

from typing import Any

from linearard.recipe.recipe import Recipe

_DEFAULT = 4096  # of a stage or part that names no window


def trained_window(recipe: Recipe, native: int, target: int) -> int:
    """Tokens that a model of this recipe may be said to read.

    A factor may be above what is trained for: the longest window that a stage reads, where it is longer
    than the native one, is the answer. A recipe that reads short windows alone is for its target.

    Args:
        recipe: whose stages are looked at.
        native: window of the original, in tokens.
        target: factor times native.
    """
    longest = 0
    for stage in recipe.stages.values():
        parts: list[dict[str, Any]] = [*(stage.get("parts") or {}).values()] or [stage]
        for part in parts:
            objective = part.get("objective") or stage.get("objective") or {}
            skipping = objective.get("skip_positions", False)
            longest = max(longest, target if skipping else part.get("window", _DEFAULT))
    return min(longest, target) if longest > native else target
