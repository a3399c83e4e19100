"""What a run needs, before it is started: memory, time, and what to change so that it fits."""

from linearard.planning.calibration import calibrate
from linearard.planning.rates import Rates, shipped_rates, store, stored_rates
from linearard.planning.recipe import PlannedRecipe, planned_recipe
from linearard.planning.text import plan_text

__all__ = [
    "PlannedRecipe",
    "Rates",
    "calibrate",
    "plan_text",
    "planned_recipe",
    "shipped_rates",
    "store",
    "stored_rates",
]
