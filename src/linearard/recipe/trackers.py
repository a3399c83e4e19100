"""Trackers that a stage reports to: whether their packages are here, said before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from linearard.errors import RecipeError

#: Modules of which one has to be there, by the name that transformers gives the tracker.
_MODULES = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


def check_trackers(source: Mapping[str, Any]) -> None:
    """Refuse a stage that reports to a tracker whose package is not installed.

    Args:
        source: a recipe as plain data; what is wrong with its form is others' to say.

    Raises:
        RecipeError: the package is missing; the message names it.
    """
    stages = source.get("stages")
    for name, stage in stages.items() if isinstance(stages, Mapping) else ():
        asked = stage.get("report_to") if isinstance(stage, Mapping) else None
        for tracker in asked if isinstance(asked, list) else [asked]:
            modules = _MODULES.get(tracker, ()) if isinstance(tracker, str) else ()
            if modules and not any(find_spec(module) for module in modules):
                raise RecipeError(
                    expected=f"the package {modules[0]}, for stages.{name}.report_to: {tracker}",
                    got="no such package in this Python",
                    fix=f"Install it: pip install {modules[0].replace('_', '-')}. Or leave report_to out.",
                )
