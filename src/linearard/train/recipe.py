"""Recipes: one YAML file a run, every field overridable, every mistake named before work starts."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from linearard.data import DataConfig
from linearard.distill import ObjectiveConfig
from linearard.errors import RecipeError
from linearard.model import AdapterConfig, ModelConfig
from linearard.train.config import RestorationConfig

_SECTIONS = {"model": ModelConfig, "adapter": AdapterConfig, "data": DataConfig}
# The run decides these; a recipe that sets them would be overruled in silence.
_RUN_DECIDES = {
    "output_dir",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
    "use_cpu",
    "resume_from_checkpoint",
}


@dataclass
class Recipe:
    """A checked recipe.

    Attributes:
        model, rope, adapter, data: what is stretched, how, what is trained, on which text.
        stages: constructor arguments of each stage's `RestorationConfig`, in order of training.
        evaluation: constructor arguments of the evaluation, checked by the caller; empty: none.
        output_dir, seed: where the run writes, and what makes it repeatable.
        source: the complete recipe as plain data, overrides included.
    """

    model: ModelConfig
    rope: dict[str, Any]
    data: DataConfig
    adapter: AdapterConfig
    stages: dict[str, dict[str, Any]]
    evaluation: dict[str, Any] = field(default_factory=dict)
    output_dir: str = "runs/linearard"
    seed: int = 0
    source: dict[str, Any] = field(default_factory=dict)


def load_recipe(path: str | Path, overrides: dict[str, str] | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file, or the bare name of a recipe that comes with the package.
        overrides: values by dotted field name, as text in YAML: `{"stages.restoration.window": "2048"}`.

    Raises:
        RecipeError: the file is missing or no YAML mapping, or a field is unknown, misspelt, of the
            wrong type or out of range.
    """
    packaged = resources.files("linearard") / "recipes" / f"{path}.yaml"
    try:
        text = (packaged if packaged.is_file() else Path(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            expected="a recipe file in YAML",
            got=f"{path}: {getattr(error, 'strerror', None) or error}",
            fix="Give the path of a recipe, for instance one of the folder recipes/.",
        ) from None
    source = parse_yaml(text, str(path))
    if not isinstance(source, dict):
        raise RecipeError(
            expected="a recipe that is a mapping of sections (model, rope, data, stages, …)",
            got=type(source).__name__,
            fix=f"Correct {path}.",
        )
    return recipe_from_dict(source, overrides)


def recipe_from_dict(source: dict[str, Any], overrides: dict[str, str] | None = None) -> Recipe:
    """Check a recipe given as plain data; see `load_recipe` for overrides and errors."""
    source = copy.deepcopy(source)
    for name, value in (overrides or {}).items():
        _override(source, name, parse_yaml(value, f"--{name}"))
    known = [item.name for item in dataclasses.fields(Recipe) if item.name != "source"]
    _check_names("", source, known)
    for name in ("model", "rope", "data", "stages"):
        if not source.get(name):
            raise RecipeError(
                expected=f"a section {name!r} in the recipe", got="none", fix=f"Add {name}: to it."
            )
    sections = {
        name: build_section(kind, source.get(name) or {}, name) for name, kind in _SECTIONS.items()
    }
    for name in ("rope", "stages", "evaluation"):
        if not isinstance(source.get(name) or {}, dict):
            raise RecipeError(
                expected=f"{name} to be a mapping", got=repr(source[name]), fix=f"Correct {name}:."
            )
    stages = {
        name: _check_stage(name, values or {}, sections["data"])
        for name, values in source["stages"].items()
    }
    return Recipe(
        **sections,
        rope=source["rope"],
        stages=stages,
        evaluation=source.get("evaluation") or {},
        output_dir=str(source.get("output_dir", Recipe.output_dir)),
        seed=_coerce(source.get("seed", 0), int, "seed"),
        source=source,
    )


def parse_yaml(text: str, where: str) -> Any:
    """Safe YAML in which `2e-5` is a number, as in YAML 1.2 and in everybody's recipes.

    Raises:
        RecipeError: no valid YAML; the place is named.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(
            expected=f"valid YAML in {where}",
            got=" ".join(str(error).split()),
            fix="Correct it there.",
        ) from None


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = copy.deepcopy(yaml.SafeLoader.yaml_implicit_resolvers)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _override(source: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    node = source
    for depth, key in enumerate(parents):
        if key not in node or node[key] is None:
            if parents[:depth] == ["stages"]:
                _check_names("stages.", {key: None}, list(node))
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise RecipeError(
                expected=f"{'.'.join(parents[: depth + 1])} to be a section",
                got=repr(node),
                fix=f"Check --{name}.",
            )
    node[last] = value


def _check_stage(name: str, values: dict[str, Any], data: DataConfig) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise RecipeError(
            expected=f"stages.{name} to be a mapping", got=repr(values), fix="Correct the stage."
        )
    where = f"stages.{name}"
    for key in values:
        if key in _RUN_DECIDES:
            raise RecipeError(
                expected=f"{where} without {key!r}",
                got=f"{key}: {values[key]!r}",
                fix="Set output_dir or seed at the top of the recipe, precision under model.",
            )
    checked = _coerced(RestorationConfig, values, where)
    if "objective" in checked:
        checked["objective"] = dataclasses.asdict(
            build_section(ObjectiveConfig, checked["objective"] or {}, f"{where}.objective")
        )
    if "data" in checked:
        changes = _coerced(DataConfig, checked["data"] or {}, f"{where}.data")
        dataclasses.replace(data, **changes)  # checks the combination
        checked["data"] = changes
    return checked


def build_section(kind: type, values: Any, where: str) -> Any:
    """A configuration dataclass from plain data.

    Raises:
        RecipeError: a field is unknown, misspelt, of the wrong type or out of range.
    """
    return kind(**_coerced(kind, values, where))


def _coerced(kind: type, values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise RecipeError(
            expected=f"{where} to be a mapping of fields",
            got=repr(values),
            fix=f"Correct {where}:.",
        )
    hints = typing.get_type_hints(kind)
    names = [item.name for item in dataclasses.fields(kind) if item.init]
    _check_names(f"{where}.", values, names)
    return {name: _coerce(value, hints[name], f"{where}.{name}") for name, value in values.items()}


def _check_names(prefix: str, values: dict[str, Any], known: list[str]) -> None:
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            shown = ", ".join(known) if len(known) <= 20 else f"{len(known)} known names"
            raise RecipeError(
                expected=f"a field {prefix}* among {shown}",
                got=f"{prefix}{name}",
                fix=f"Did you mean {prefix}{close[0]}?" if close else "Remove it.",
            )


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Check a plain type; types this function does not know are left to the dataclass itself."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    simple = [kind for kind in options if kind in (int, float, bool, str, type(None))]
    if len(simple) != len(options):
        return value
    if value is None and type(None) in options:
        return None
    if isinstance(value, bool):
        good = bool in options
    elif isinstance(value, int):
        good = int in options or float in options
        value = float(value) if good and int not in options else value
    else:
        good = type(value) in options
    if not good:
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in options)
        raise RecipeError(
            expected=f"{where} to be {wanted}", got=repr(value), fix=f"Correct {where}."
        )
    return value
