"""One stage of a recipe: its fields checked, its sections built."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from linearard.data import DataConfig
from linearard.distill import ObjectiveConfig
from linearard.errors import RecipeError, shown
from linearard.recipe.held_out import HeldOutConfig
from linearard.recipe.sections import build_section, coerced
from linearard.recipe.stage import PartConfig, RestorationConfig, own_fields, parts_of
from linearard.recipe.trainer_fields import instead_of

_INHERITED = {item.name for item in dataclasses.fields(RestorationConfig)} - {
    item.name for item in own_fields()
}
_DECIDED_BY_PARTS = (
    "window",
    "sequences",
    "objective",
    "data",
    "per_device_train_batch_size",
    "train_sampling_strategy",
)
#: Fields of `data` that a stage must not change: it would train on what the evaluation reads.
_HELD_OUT = {"validation", "validation_fraction", "validation_split"}
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass
class StageSection:
    """What a recipe asks of one stage.

    Attributes:
        fields: of `RestorationConfig`, those that the recipe gives: an `ObjectiveConfig`, a
            `HeldOutConfig` and each `PartConfig` among them are built.
    """

    fields: dict[str, Any]

    @property
    def parts(self) -> dict[str, PartConfig]:
        """The parts by name; of a stage without, itself under the name ""."""
        return parts_of(self.fields)


def build_stage(name: Any, values: Any, data: DataConfig) -> StageSection:
    """A stage from plain data.

    Args:
        name: of the stage.
        values: its fields.
        data: of the whole recipe, which stages and parts change.

    Raises:
        RecipeError: a field is unknown, misspelt, of the wrong type or out of range, or set in the wrong
            place.
    """
    if not isinstance(values, dict):
        raise RecipeError(
            expected=f"stages.{name} to be a mapping", value=values, fix="Correct the stage."
        )
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RecipeError(
            expected="stage names of letters, digits, - and _",
            value=name,
            fix="Rename the stage; its folder is named after it.",
        )
    where = f"stages.{name}"
    for key in values:
        fix = instead_of(key) if key in _INHERITED else None
        if fix is not None:
            raise RecipeError(
                expected=f"{where} without {key!r}", got=f"{key}: {shown(values[key])}", fix=fix
            )
    checked = coerced(RestorationConfig, values, where)
    with naming_stage(name):
        _build_sections(checked, where, data)
        parts = checked.get("parts") or {}
        for key in _DECIDED_BY_PARTS if parts else ():
            if key in checked:
                raise RecipeError(
                    expected=f"{where} without {key!r}, which its parts decide",
                    got=f"{key}: {values[key]!r}",
                    fix=f"Move it into {', '.join(f'{where}.parts.{part}' for part in parts)}.",
                )
        if "parts" in checked:
            checked["parts"] = {
                part: _build_part(part, inner or {}, where, data) for part, inner in parts.items()
            }
    return StageSection(checked)


def readable_stage(name: Any, values: Any, data: DataConfig) -> StageSection:
    """What of a stage that was trained elsewhere, perhaps by a later version, can be read.

    Args:
        name, values, data: as for `build_stage`; fields that it would refuse are left out.
    """
    found: dict[str, Any] = {}
    for field, value in (values if isinstance(values, dict) else {}).items():
        with contextlib.suppress(RecipeError):
            found |= build_stage(name, {field: value}, data).fields
    return StageSection(found)


def _build_part(name: Any, values: Any, stage: str, data: DataConfig) -> PartConfig:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RecipeError(
            expected="part names of letters, digits, - and _",
            value=name,
            fix=f"Rename the part of {stage}.",
        )
    checked = coerced(PartConfig, values, f"{stage}.parts.{name}")
    _build_sections(checked, f"{stage}.parts.{name}", data)
    return PartConfig(**checked)


def _build_sections(values: dict[str, Any], where: str, data: DataConfig) -> None:
    """Build the sections `objective` and `held_out` of a stage or a part in place, and check `data`."""
    for name, kind in (("objective", ObjectiveConfig), ("held_out", HeldOutConfig)):
        if name in values:
            values[name] = build_section(kind, values[name] or {}, f"{where}.{name}")
    if "data" in values:
        changes = coerced(DataConfig, values["data"] or {}, f"{where}.data")
        for key in _HELD_OUT & changes.keys():
            raise RecipeError(
                expected=f"{where}.data without {key!r}: one text is held out from all training",
                got=f"{key}: {changes[key]!r}",
                fix=f"Set data.{key} at the top of the recipe.",
            )
        dataclasses.replace(data, **changes)  # checks the combination
        values["data"] = changes


@contextlib.contextmanager
def naming_stage(name: str) -> Iterator[None]:
    """Name the stage in a refusal by a configuration that does not know which stage it is for."""
    try:
        yield
    except RecipeError as error:
        if f"stages.{name}" not in error.expected:
            error = error.reworded(expected=f"{error.expected} in stage {name!r}")
        raise error from None
