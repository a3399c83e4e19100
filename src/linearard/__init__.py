"""Stretch a language model's context and restore its short-text ability.

The names below are loaded when they are first used: importing `linearard` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linearard.model import RestorableModel, load_restored
    from linearard.ops.relation_kl import attention_kl, relation_kl
    from linearard.pipeline import train_and_report
    from linearard.recipe import RestorationConfig, load_recipe
    from linearard.train import run_recipe
    from linearard.train.trainer import RestorationTrainer

__all__ = [
    "RestorableModel",
    "RestorationConfig",
    "RestorationTrainer",
    "attention_kl",
    "load_recipe",
    "load_restored",
    "relation_kl",
    "run_recipe",
    "train_and_report",
]

_HOMES = {
    "RestorableModel": "linearard.model",
    "RestorationConfig": "linearard.recipe",
    "RestorationTrainer": "linearard.train.trainer",
    "attention_kl": "linearard.ops.relation_kl",
    "load_recipe": "linearard.recipe",
    "load_restored": "linearard.model",
    "relation_kl": "linearard.ops.relation_kl",
    "run_recipe": "linearard.train",
    "train_and_report": "linearard.pipeline",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("linearard")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
