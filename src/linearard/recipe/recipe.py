"""Recipes: one YAML file a run, every field overridable, every mistake named before work starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from linearard.data import DataConfig
from linearard.data.config import SELF
from linearard.errors import RecipeError, shown
from linearard.evaluation import EvaluationConfig
from linearard.fields import LARGEST_SEED, described, user_path, whole
from linearard.model import AdapterConfig, ModelConfig, check_trainable
from linearard.recipe.former_names import with_current_names
from linearard.recipe.permissions import check_permissions
from linearard.recipe.plain_data import plain_data
from linearard.recipe.secrets import hide_secrets, refuse_secrets
from linearard.recipe.sections import build_section, check_names, coerced, meant
from linearard.recipe.stage_section import StageSection, build_stage, readable_stage
from linearard.recipe.trackers import tracker_names
from linearard.recipe.yaml_text import parse_yaml, read_yaml

_SECTIONS = {"model": ModelConfig, "adapter": AdapterConfig, "data": DataConfig}
_ALONE = ("output_dir", "seed", "deterministic", "target_window")
#: Where a run writes to, which is no one else's to say.
_WHERE_TO = ("output_dir", "report_to")


@dataclass
class Recipe:
    """A checked recipe.

    Attributes:
        model, rope, adapter, data: what is stretched, how, what is trained, on which text.
        stages: what is asked of each stage, in order of training.
        evaluation: what is measured after training; None: nothing.
        output_dir, seed, deterministic: where the run writes, and what makes it repeatable.
        target_window: tokens that the trained model shall read, which its exports say; None: the longest
            window trained beyond the native one, else factor times native window.
        report_to: trackers that get losses, recipe and evaluation, by the names of `tracker_names`.
        source: the complete recipe as plain data, overrides included.
    """

    model: ModelConfig
    rope: dict[str, Any]
    data: DataConfig
    adapter: AdapterConfig
    stages: dict[str, StageSection]
    evaluation: EvaluationConfig | None = None
    output_dir: str = described("runs/linearard", "Where the run writes.")
    seed: int = described(0, "What makes the run repeatable.", whole(0, LARGEST_SEED))
    deterministic: bool = described(False, "Repeatable to the bit, on one GPU too.")
    target_window: int | None = described(
        None, "Tokens that the trained model shall read.", whole(2, 1 << 27).or_null()
    )
    report_to: list[str] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)


def load_recipe(
    path: str | Path,
    overrides: dict[str, str] | None = None,
    *,
    allowed: Mapping[str, Any] | None = None,
) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file, or the bare name of a recipe that comes with the package.
        overrides: values by dotted field name, as text in YAML: `{"stages.restoration.window": "2048"}`.
            `stages.NAME: null` removes a stage, `stages.NAME.parts.PART: null` a part of one.
        allowed: see `recipe_from_dict`.

    Raises:
        RecipeError: the file is missing or no YAML mapping, or a field is unknown, misspelt, of the
            wrong type or out of range, or asks for what only the command line may allow.
    """
    known = _packaged()
    packaged = resources.files("linearard") / "recipes" / f"{path}.yaml"
    source = read_yaml(
        packaged if path in known else str(path),
        "a recipe file in YAML",
        f"{meant(path, known)} Give a path, or a recipe that comes with linearard: "
        f"{', '.join(known)}.".lstrip(),
    )
    if not isinstance(source, dict):
        raise RecipeError(
            expected="a recipe that is a mapping of sections (model, rope, data, stages, …)",
            got="an empty file" if source is None else shown(source)[:60],
            fix=f"Correct {path}.",
        )
    return recipe_from_dict(source, overrides, allowed=allowed)


def recipe_from_dict(
    source: dict[str, Any],
    overrides: dict[str, str] | None = None,
    *,
    allowed: Mapping[str, Any] | None = None,
) -> Recipe:
    """Check a recipe given as plain data.

    Args:
        source: as a recipe file has it.
        overrides: see `load_recipe`.
        allowed: the values by dotted name that the user gave on the command line, which may allow more
            than a file (see `check_permissions`); default: all overrides.

    Raises:
        RecipeError: see `load_recipe`; or it asks for what only the command line may allow, or holds a
            secret.
    """
    source, given = _merged(source, overrides, "the recipe")
    refuse_secrets(source)
    check_permissions(source, given if allowed is None else allowed)
    sections = _sections(source)
    data = sections["data"]
    if data.train == SELF and data.validation is None:
        raise RecipeError(
            expected=f"data.validation beside data.train: {SELF}",
            got="none",
            fix="Name other text in data.validation: text that the model wrote is no measure of it.",
        )
    stages = {
        name: build_stage(name, values or {}, data) for name, values in source["stages"].items()
    }
    return Recipe(**sections, stages=stages, source=source)


def checkpoint_recipe(
    source: Any, overrides: dict[str, str] | None = None, *, where: str
) -> Recipe:
    """The recipe that a checkpoint carries, for reading its weights.

    Whoever made the checkpoint wrote it: it allows nothing that needs the command line, names no folder
    or tracker to write to, and its secrets are hidden. Nothing trains its stages again: of their fields,
    those that cannot be read today are left out.

    Args:
        source: what the checkpoint holds.
        overrides: from the command line, see `load_recipe`.
        where: the checkpoint, for messages.

    Raises:
        RecipeError: see `recipe_from_dict`.
    """
    if not isinstance(source, dict):
        raise RecipeError(
            expected=f"a recipe in {where}", value=source, fix="Use another checkpoint."
        )
    source = with_current_names({k: v for k, v in source.items() if k not in _WHERE_TO})
    if isinstance(source.get("data"), dict):
        source["data"] = {k: v for k, v in source["data"].items() if k != "cache_dir"}
    source, given = _merged(source, overrides, where)
    check_permissions({"model": source.get("model")}, given, where)
    source = hide_secrets(source)
    sections = _sections(source)
    stages = {
        name: readable_stage(name, values, sections["data"])
        for name, values in source["stages"].items()
    }
    return Recipe(**sections, stages=stages, source=source)


def _merged(
    source: Any, overrides: dict[str, str] | None, where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A copy of the recipe with overrides and all its sections, and the overrides as values."""
    source = plain_data(source, where)
    given = {name: parse_yaml(value, f"--{name}") for name, value in (overrides or {}).items()}
    for name, value in given.items():
        _override(source, name, plain_data(value, f"--{name}"))
    known = [item.name for item in dataclasses.fields(Recipe) if item.name != "source"]
    check_names("", source, known)
    for name in ("model", "rope", "data", "stages"):
        if not source.get(name):
            raise RecipeError(
                expected=f"a section {name!r} in the recipe", got="none", fix=f"Add {name}: to it."
            )
    for name in ("rope", "stages", "evaluation"):
        if not isinstance(source.get(name) or {}, dict):
            raise RecipeError(
                expected=f"{name} to be a mapping",
                value=source[name],
                fix=f"Correct the section {name}.",
            )
    return source, given


def _sections(source: dict[str, Any]) -> dict[str, Any]:
    """The fields of `Recipe` that do not depend on what is trained, checked."""
    sections = {
        name: build_section(kind, source.get(name) or {}, name) for name, kind in _SECTIONS.items()
    }
    check_trainable(sections["model"], sections["adapter"])
    alone = coerced(Recipe, {name: source[name] for name in _ALONE if name in source}, "")
    measured = source.get("evaluation")
    return sections | {
        "rope": source["rope"],
        "evaluation": build_section(EvaluationConfig, measured, "evaluation") if measured else None,
        **alone,
        "output_dir": user_path(alone.get("output_dir", Recipe.output_dir), "output_dir"),
        "report_to": tracker_names(source.get("report_to")),
    }


def _packaged() -> list[str]:
    folder = resources.files("linearard") / "recipes"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir())


def _override(source: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    node = source
    for depth, key in enumerate(parents):
        if key not in node or node[key] is None:
            if parents[:depth] == ["stages"]:
                check_names("stages", {key: None}, list(node))
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise RecipeError(
                expected=f"{'.'.join(parents[: depth + 1])} to be a section",
                value=node,
                fix=f"Check --{name}.",
            )
    if value is None and parents in (["stages"], ["stages", *parents[1:2], "parts"]):
        check_names(".".join(parents), {last: None}, list(node))
        del node[last]
    else:
        node[last] = value
