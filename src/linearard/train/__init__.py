"""Recipes, the trainer, and runs of one or more stages."""

from linearard.train.config import RestorationConfig, own_fields
from linearard.train.recipe import Recipe, load_recipe, recipe_from_dict
from linearard.train.run import RECIPE_FILE, RunResult, run_recipe

__all__ = [
    "RECIPE_FILE",
    "Recipe",
    "RestorationConfig",
    "RunResult",
    "load_recipe",
    "own_fields",
    "recipe_from_dict",
    "run_recipe",
]
