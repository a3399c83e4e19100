"""How long a text a recipe trains a model for."""

from __future__ import annotations

from linearard.recipe.recipe import Recipe


def trained_window(recipe: Recipe, native: int, target: int) -> int:
    """Tokens that a model of this recipe may be said to read.

    A factor may be above what is trained for: the longest window that a stage reads, where it is longer
    than the native one, is the answer. A recipe that reads short windows alone is for its target.

    Args:
        recipe: whose stages are looked at.
        native: window of the original, in tokens.
        target: factor times native.
    """
    parts = [part for stage in recipe.stages.values() for part in stage.parts.values()]
    longest = max(
        (target if part.objective.skip_positions else part.window for part in parts), default=0
    )
    return min(longest, target) if longest > native else target
