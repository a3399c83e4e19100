"""What a run needs, before it is started: memory, time, and what to change so that it fits."""

from linearard.planning.calibration import calibrate
from linearard.planning.rates import Rates, shipped_rates, store, stored_rates
from linearard.planning.recipe import PlannedRecipe, planned_recipe
from linearard.planning.several import Layout, Links, SeveralPlan, choose_layout, plan_several
from linearard.planning.several_text import several_text
from linearard.planning.text import plan_text

__all__ = [
    "Layout",
    "Links",
    "PlannedRecipe",
    "Rates",
    "SeveralPlan",
    "calibrate",
    "choose_layout",
    "plan_several",
    "plan_text",
    "planned_recipe",
    "several_text",
    "shipped_rates",
    "store",
    "stored_rates",
]
