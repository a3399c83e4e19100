"""Recipes: one YAML file a run, every field overridable, every mistake named before work starts."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from linearard.data import DataConfig
from linearard.data.config import SELF
from linearard.distill import ObjectiveConfig
from linearard.errors import RecipeError
from linearard.model import AdapterConfig, ModelConfig, check_trainable
from linearard.train.config import PartConfig, RestorationConfig
from linearard.train.held_out_config import HeldOutConfig
from linearard.train.yaml_text import parse_yaml, unshared

_SECTIONS = {"model": ModelConfig, "adapter": AdapterConfig, "data": DataConfig}
_AT_THE_TOP = "Set it at the top of the recipe."
_UNDER_MODEL = "Set model.dtype and model.device."
_AFTERWARDS = "The section evaluation measures the restored model after training."
_ONE_COPY = "Each process holds the whole model: use torchrun for several GPUs."
_NOT_OURS = "The losses of a stage are those of its objective."
#: Fields of TrainingArguments that a stage must not set, with the way to what they are wanted for.
#: The run decides them, or they would be ignored or fail after the model was loaded.
_NOT_IN_A_STAGE = {
    "output_dir": _AT_THE_TOP,
    "seed": _AT_THE_TOP,
    "data_seed": "Set data.seed.",
    "bf16": _UNDER_MODEL,
    "fp16": _UNDER_MODEL,
    "use_cpu": _UNDER_MODEL,
    "resume_from_checkpoint": "Use --resume.",
    "do_eval": _AFTERWARDS,
    "eval_strategy": _AFTERWARDS,
    "eval_on_start": _AFTERWARDS,
    "load_best_model_at_end": _AFTERWARDS,
    "metric_for_best_model": _AFTERWARDS,
    "label_smoothing_factor": _NOT_OURS,
    "neftune_noise_alpha": _NOT_OURS,
    "fsdp": _ONE_COPY,
    "fsdp_config": _ONE_COPY,
    "deepspeed": _ONE_COPY,
    "parallelism_config": _ONE_COPY,
    "auto_find_batch_size": "Set per_device_train_batch_size.",
    "gradient_checkpointing_kwargs": "Set gradient_checkpointing alone.",
    "activation_checkpointing": "Set gradient_checkpointing.",
    "activation_checkpointing_kwargs": "Set gradient_checkpointing alone.",
    "use_liger_kernel": "Patch the model with liger_kernel and hand it to RestorableModel.",
    "push_to_hub": "Upload what `linearard export` writes.",
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
_STAGE_NAME = re.compile(r"[A-Za-z0-9_-]+")
_LARGEST_SEED = 2**32 - 1000  # numpy's limit, less one for each stage


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
            `stages.NAME: null` removes a stage, `stages.NAME.parts.PART: null` a part of one.

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
            fix=f"{_meant(path, _packaged())} Give a path, or a recipe that comes with linearard: "
            f"{', '.join(_packaged())}.".lstrip(),
        ) from None
    source = parse_yaml(text, str(path))
    if not isinstance(source, dict):
        raise RecipeError(
            expected="a recipe that is a mapping of sections (model, rope, data, stages, …)",
            got="an empty file" if source is None else repr(source)[:60],
            fix=f"Correct {path}.",
        )
    return recipe_from_dict(source, overrides)


def recipe_from_dict(source: dict[str, Any], overrides: dict[str, str] | None = None) -> Recipe:
    """Check a recipe given as plain data; see `load_recipe` for overrides and errors."""
    source = unshared(source)
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
    check_trainable(sections["model"], sections["adapter"])
    data = sections["data"]
    if data.train == SELF and data.validation is None:
        raise RecipeError(
            expected=f"data.validation beside data.train: {SELF}",
            got="none",
            fix="Name held-out text: what the model writes is no measure of it.",
        )
    for name in ("rope", "stages", "evaluation"):
        if not isinstance(source.get(name) or {}, dict):
            raise RecipeError(
                expected=f"{name} to be a mapping",
                got=repr(source[name]),
                fix=f"Correct the section {name}.",
            )
    stages = {
        name: _check_stage(name, values or {}, data) for name, values in source["stages"].items()
    }
    seed = _coerce(source.get("seed", 0), int, "seed")
    if not 0 <= seed <= _LARGEST_SEED:
        raise RecipeError(
            expected=f"seed from 0 to {_LARGEST_SEED}", got=str(seed), fix="Choose another seed."
        )
    return Recipe(
        **sections,
        rope=source["rope"],
        stages=stages,
        evaluation=source.get("evaluation") or {},
        output_dir=_coerce(source.get("output_dir", Recipe.output_dir), str, "output_dir"),
        seed=seed,
        source=source,
    )


def _meant(name: object, known: list[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"Did you mean {prefix}{close[0]}?" if close else ""


def _packaged() -> list[str]:
    folder = resources.files("linearard") / "recipes"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir())


def _override(source: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    node = source
    for depth, key in enumerate(parents):
        if key not in node or node[key] is None:
            if parents[:depth] == ["stages"]:
                _check_names("stages", {key: None}, list(node))
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise RecipeError(
                expected=f"{'.'.join(parents[: depth + 1])} to be a section",
                got=repr(node),
                fix=f"Check --{name}.",
            )
    if value is None and parents in (["stages"], ["stages", *parents[1:2], "parts"]):
        _check_names(".".join(parents), {last: None}, list(node))
        del node[last]
    else:
        node[last] = value


def _check_stage(name: str, values: dict[str, Any], data: DataConfig) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise RecipeError(
            expected=f"stages.{name} to be a mapping", got=repr(values), fix="Correct the stage."
        )
    if not isinstance(name, str) or not _STAGE_NAME.fullmatch(name):
        raise RecipeError(
            expected="stage names of letters, digits, - and _",
            got=repr(name),
            fix="Rename the stage; its folder is named after it.",
        )
    where = f"stages.{name}"
    for key in values:
        if key in _NOT_IN_A_STAGE:
            raise RecipeError(
                expected=f"{where} without {key!r}",
                got=f"{key}: {values[key]!r}",
                fix=_NOT_IN_A_STAGE[key],
            )
    checked = _coerced(RestorationConfig, values, where)
    with naming_stage(name):
        _check_nested(checked, where, data)
        parts = checked.get("parts") or {}
        for key in _DECIDED_BY_PARTS if parts else ():
            if key in checked:
                raise RecipeError(
                    expected=f"{where} without {key!r}, which its parts decide",
                    got=f"{key}: {values[key]!r}",
                    fix=f"Move it into {', '.join(f'{where}.parts.{part}' for part in parts)}.",
                )
        for part, inner in parts.items():
            if not isinstance(part, str) or not _STAGE_NAME.fullmatch(part):
                raise RecipeError(
                    expected="part names of letters, digits, - and _",
                    got=repr(part),
                    fix=f"Rename the part of {where}.",
                )
            parts[part] = _coerced(PartConfig, inner or {}, f"{where}.parts.{part}")
            _check_nested(parts[part], f"{where}.parts.{part}", data)
    return checked


def _check_nested(values: dict[str, Any], where: str, data: DataConfig) -> None:
    """Check the sections `objective`, `held_out` and `data` of a stage or a part, and complete them."""
    if "objective" in values:
        objective = build_section(ObjectiveConfig, values["objective"] or {}, f"{where}.objective")
        values["objective"] = dataclasses.asdict(objective)
    if "held_out" in values:
        watched = build_section(HeldOutConfig, values["held_out"] or {}, f"{where}.held_out")
        values["held_out"] = dataclasses.asdict(watched)
    if "data" in values:
        changes = _coerced(DataConfig, values["data"] or {}, f"{where}.data")
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
            fix=f"Correct the section {where}.",
        )
    hints = typing.get_type_hints(kind)
    names = [item.name for item in dataclasses.fields(kind) if item.init]
    _check_names(where, values, names)
    return {name: _coerce(value, hints[name], f"{where}.{name}") for name, value in values.items()}


def _check_names(where: str, values: dict[str, Any], known: list[str]) -> None:
    """Refuse a name that is not known; `where` is the section's, empty at the top of the recipe."""
    prefix = f"{where}." if where else ""
    for name in values:
        if name not in known:
            ours = not where.startswith("stages.") or len(known) <= 20
            shown = ", ".join(known) if ours else "ours, or of TrainingArguments"
            raise RecipeError(
                expected=f"a field of {where or 'the recipe'} ({shown})",
                got=f"{prefix}{name}",
                fix=_meant(name, known, prefix)
                or "Remove it; `linearard train --help` lists every field.",
            )


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Check a plain type; types this module does not know are left to the dataclass itself."""
    try:
        return _fit(value, hint)
    except TypeError:
        raise RecipeError(
            expected=f"{where} to be {_described(hint)}", got=repr(value), fix=f"Correct {where}."
        ) from None


def _fit(value: Any, hint: Any) -> Any:
    """The value as the hint asks for it (whole numbers where numbers are wanted), or TypeError."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        # The value's own type first: 1 stays a whole number where both kinds are allowed.
        for option in sorted(inner, key=lambda option: option is not type(value)):
            try:
                return _fit(value, option)
            except TypeError:
                continue
        raise TypeError
    kind = origin or hint
    if kind is float and type(value) is int:
        return float(value)
    if kind in _PLAIN and type(value) is not kind:
        raise TypeError
    if kind is list and inner:
        return [_fit(item, inner[0]) for item in value]
    if kind is dict and inner:
        return {_fit(key, inner[0]): _fit(item, inner[1]) for key, item in value.items()}
    return value


_PLAIN = {
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def _described(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_described, inner)))
    name = _PLAIN.get(origin or hint, getattr(hint, "__name__", str(hint)))
    listed = origin in (list, dict) and inner[-1] is not Any
    return f"{name} (each {_described(inner[-1])})" if listed else name
