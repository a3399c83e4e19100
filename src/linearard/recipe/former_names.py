"""Recipes of earlier versions, which checkpoints carry: fields under the names that they have now."""

from __future__ import annotations

from typing import Any

from linearard.data import DataConfig
from linearard.distill import ObjectiveConfig
from linearard.fields import former_names
from linearard.model import AdapterConfig
from linearard.recipe.stage import PartConfig, RestorationConfig

_OF_A_PART = {"objective": ObjectiveConfig, "data": DataConfig}


def with_current_names(recipe: dict[str, Any]) -> dict[str, Any]:
    """A copy of a recipe in which every field that was renamed has its name of today.

    Args:
        recipe: plain data, well formed or not.
    """
    renamed = dict(recipe)
    for name, kind in (("adapter", AdapterConfig), ("data", DataConfig)):
        if name in renamed:
            renamed[name] = _renamed(kind, renamed[name])
    if isinstance(renamed.get("stages"), dict):
        renamed["stages"] = {name: _stage(stage) for name, stage in renamed["stages"].items()}
    return renamed


def _stage(stage: Any) -> Any:
    stage = _sections(RestorationConfig, stage)
    if isinstance(stage, dict) and isinstance(stage.get("parts"), dict):
        stage["parts"] = {n: _sections(PartConfig, part) for n, part in stage["parts"].items()}
    return stage


def _sections(kind: type, values: Any) -> Any:
    values = _renamed(kind, values)
    for name, inner in _OF_A_PART.items():
        if isinstance(values, dict) and name in values:
            values[name] = _renamed(inner, values[name])
    return values


def _renamed(kind: type, values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    names = former_names(kind)
    return {names.get(name, name): value for name, value in values.items()}
