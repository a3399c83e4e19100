"""Recipes, the trainer, and runs of one or more stages."""

from linearard.train.config import PartConfig, RestorationConfig, own_fields
from linearard.train.folder import RECIPE_FILE, REPORT_FILE, RESULT_FILE
from linearard.train.opened import open_checkpoint, own_folder, share_not_kept
from linearard.train.recipe import Recipe, load_recipe, recipe_from_dict
from linearard.train.run import (
    PreparedRun,
    RunResult,
    is_main_process,
    prepare_run,
    run_recipe,
)
from linearard.train.sections import build_section
from linearard.train.trained_window import trained_window

__all__ = [
    "RECIPE_FILE",
    "REPORT_FILE",
    "RESULT_FILE",
    "PartConfig",
    "PreparedRun",
    "Recipe",
    "RestorationConfig",
    "RunResult",
    "build_section",
    "is_main_process",
    "load_recipe",
    "open_checkpoint",
    "own_fields",
    "own_folder",
    "prepare_run",
    "recipe_from_dict",
    "run_recipe",
    "share_not_kept",
    "trained_window",
]
