"""What is asked of a run: recipes, their sections, and the fields of stages and parts."""

from linearard.recipe.recipe import Recipe, load_recipe, recipe_from_dict
from linearard.recipe.sections import build_section
from linearard.recipe.stage import PartConfig, RestorationConfig, own_fields
from linearard.recipe.stage_section import StageSection
from linearard.recipe.trained_window import trained_window, with_ruler_lengths

__all__ = [
    "PartConfig",
    "Recipe",
    "RestorationConfig",
    "StageSection",
    "build_section",
    "load_recipe",
    "own_fields",
    "recipe_from_dict",
    "trained_window",
    "with_ruler_lengths",
]
