"""How long a text a recipe trains a model for, and what is measured up to there."""

from __future__ import annotations

import dataclasses
from typing import Any

from linearard.evaluation.config import RULER, RULER_BEGINS
from linearard.model import load_config
from linearard.recipe.recipe import Recipe
from linearard.rope import check_scaling, native_window, target_window

_RULER_STEP = 4  # between two of its lengths


def trained_window(recipe: Recipe, native: int, target: int) -> int:
    """Tokens that a model of this recipe may be said to read.

    What the recipe says itself, if it does. A factor may be above what is trained for: else it is the longest
    window that a stage reads, where that is longer than the native one. A recipe that reads short windows
    alone is for its target.

    Args:
        recipe: whose stages are looked at.
        native: window of the original, in tokens.
        target: factor times native.
    """
    if recipe.target_window is not None:
        return recipe.target_window
    parts = [part for stage in recipe.stages.values() for part in stage.parts.values()]
    longest = max(
        (target if part.objective.skip_positions else part.window for part in parts), default=0
    )
    return min(longest, target) if longest > native else target


def with_ruler_lengths(recipe: Recipe, config: Any = None) -> Recipe:
    """The recipe with lengths of RULER up to its trained window, where its evaluation asks for RULER without.

    Args:
        recipe: left as it is.
        config: the model's text configuration; read, where it is wanted and not given.

    Raises:
        RopeError: the scaling and the model do not fit.
        ModelError: the configuration cannot be read.
    """
    asked = recipe.evaluation
    if asked is None or RULER not in asked.lm_eval or asked.ruler_lengths is not None:
        return recipe
    config = load_config(recipe.model) if config is None else config
    scaling = check_scaling(recipe.rope, config)
    longest = trained_window(recipe, native_window(config, scaling), target_window(scaling, config))
    lengths = [RULER_BEGINS]
    while lengths[-1] < longest:
        lengths.append(min(lengths[-1] * _RULER_STEP, longest))
    lengths[0] = min(lengths[0], longest)
    return dataclasses.replace(recipe, evaluation=dataclasses.replace(asked, ruler_lengths=lengths))
