"""Recipes, the trainer, and runs of one or more stages."""

from linearard.train.config import RestorationConfig, own_fields
from linearard.train.recipe import Recipe, build_section, load_recipe, recipe_from_dict
from linearard.train.run import RECIPE_FILE, RunResult, open_checkpoint, run_recipe

__all__ = [
    "RECIPE_FILE",
    "Recipe",
    "RestorationConfig",
    "RunResult",
    "build_section",
    "load_recipe",
    "open_checkpoint",
    "own_fields",
    "recipe_from_dict",
    "run_recipe",
]
