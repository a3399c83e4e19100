"""The trainer, and runs of one or more stages."""

from linearard.train.folder import RECIPE_FILE, REPORT_FILE, RESULT_FILE
from linearard.train.opened import open_checkpoint, own_folder, share_not_kept
from linearard.train.run import PreparedRun, RunResult, prepare_run, run_recipe
from linearard.train.trackers import Trackers

__all__ = [
    "RECIPE_FILE",
    "REPORT_FILE",
    "RESULT_FILE",
    "PreparedRun",
    "RunResult",
    "Trackers",
    "open_checkpoint",
    "own_folder",
    "prepare_run",
    "run_recipe",
    "share_not_kept",
]
