"""Trackers that a run reports to: their names, and whether their packages are here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from linearard.errors import RecipeError
from linearard.recipe.sections import meant

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


def tracker_names(asked: Any) -> list[str]:
    """The trackers that `report_to` of a recipe names, each once.

    Args:
        asked: a name, several in a list, or none: null, `none` or an empty list.

    Raises:
        RecipeError: it is something else, or an unknown name.
    """
    listed = asked if isinstance(asked, list) else [] if asked in (None, "none") else [asked]
    for name in listed:
        if not isinstance(name, str) or name not in _MODULES:
            raise RecipeError(
                expected=f"report_to to be none, or one or several of {', '.join(_MODULES)}",
                value=asked,
                fix=meant(name, list(_MODULES)) or "Correct report_to.",
            )
    return list(dict.fromkeys(listed))


def check_trackers(names: Iterable[str]) -> None:
    """Refuse a tracker whose package is not installed.

    Args:
        names: see `tracker_names`.

    Raises:
        RecipeError: a package is missing; the message names it.
    """
    for name in names:
        modules = _MODULES[name]
        if not any(find_spec(module) for module in modules):
            raise RecipeError(
                expected=f"the package {modules[0]}, for report_to: {name}",
                got="no such package in this Python",
                fix=f"Install it: pip install {modules[0].replace('_', '-')}. Or leave report_to out.",
            )
