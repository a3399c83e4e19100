"""From a model and a window to a recipe, and from that to a restored model with a verdict."""

from linearard.restore.description import describe
from linearard.restore.request import RestoreRequest, parse_tokens, parse_window
from linearard.restore.run import RestorePlan, plan_restoration, restore, write_recipe
from linearard.restore.verdict import Verdict, judge

__all__ = [
    "RestorePlan",
    "RestoreRequest",
    "Verdict",
    "describe",
    "judge",
    "parse_tokens",
    "parse_window",
    "plan_restoration",
    "restore",
    "write_recipe",
]
