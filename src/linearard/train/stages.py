"""The arguments of every stage, checked against the model before anything is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from linearard.capture import attention_layers
from linearard.data import DataConfig
from linearard.data.config import SELF
from linearard.errors import RecipeError, RopeError, UserError, shown
from linearard.recipe import Recipe
from linearard.recipe.held_out import HeldOutConfig
from linearard.recipe.stage import PartConfig, RestorationConfig
from linearard.recipe.stage_section import naming_stage
from linearard.rope import check_scaling, native_window, target_window
from linearard.train.dry_run import try_stage
from linearard.train.folder import stage_folder
from linearard.train.processes import check_sharing

_LARGEST_WINDOW = 1 << 27
#: Whose states have the shape of a weight, or are numbers.
_OPTIMIZERS_OF_SHARES = ("adamw_torch", "adamw_torch_fused", "sgd", "muon")


def stage_arguments(
    recipe: Recipe, config: Any, device: torch.device, dtype: torch.dtype, progress: bool
) -> dict[str, RestorationConfig]:
    """The stages' arguments, if model, RoPE and stages fit together.

    Args:
        recipe: checked by `load_recipe`.
        config: the model's text configuration.
        device, dtype: where and in which precision the model will run.
        progress: whether stages show a bar.

    Raises:
        RecipeError, RopeError: they do not fit.
    """
    scaling = check_scaling(recipe.rope, config)
    native, target = native_window(config, scaling), target_window(scaling, config)
    if target > _LARGEST_WINDOW:
        raise RopeError(
            expected=f"a stretched window of at most {_LARGEST_WINDOW} tokens",
            value=recipe.rope.get("factor"),
            fix="Set rope.factor to target window / native window, for instance 8.",
        )
    if recipe.target_window is not None and recipe.target_window > target:
        raise RecipeError(
            expected=f"target_window of at most {target} tokens, factor times native window",
            got=str(recipe.target_window),
            fix="Lower target_window, or raise rope.factor.",
        )
    stages = {}
    for index, (name, section) in enumerate(recipe.stages.items()):
        decided = {
            "output_dir": str(Path(recipe.output_dir) / stage_folder(index, name)),
            "seed": recipe.seed + index,
            "use_cpu": device.type == "cpu",
            "bf16": dtype == torch.bfloat16,
            "fp16": dtype == torch.float16,
            "report_to": "none",  # the run reports, not its stages each for itself
            "disable_tqdm": not progress or section.fields.get("disable_tqdm"),
        }
        stages[name] = _stage_arguments(name, section.fields | decided)
        if recipe.model.sharded:
            _check_sharded(name, stages[name])
        check_sharing(name, stages[name], config)
        with naming_stage(name):
            _check_held_out(f"stages.{name}", stages[name].held_out, native, target)
            for part, config_of_part in stages[name].all_parts.items():
                where = f"stages.{name}.parts.{part}" if part else f"stages.{name}"
                _check_part(where, config_of_part, native, target, config)
                _check_data(where, config_of_part, recipe.data)
                if dtype == torch.float16 and config_of_part.objective.inputs == "teacher":
                    raise RecipeError(
                        expected=f"bfloat16 or float32 for {where}.objective.inputs: teacher",
                        got="float16, whose loss scale comes after these gradients are formed",
                        fix="Set model.dtype to bfloat16 or float32, or inputs to own.",
                    )
    return stages


def _check_sharded(name: str, stage: RestorationConfig) -> None:
    """Whether the optimizer can step on shares of weights."""
    able = stage.optimizer_name in _OPTIMIZERS_OF_SHARES and not stage.offload_optimizer
    if able:
        return
    field = "offload_optimizer" if stage.offload_optimizer else "optim"
    raise RecipeError(
        expected=f"stages.{name}.{field} that trains weights of which a process has a share, for "
        f"model.sharded: muon, or one of {', '.join(_OPTIMIZERS_OF_SHARES[:-1])}",
        got="true" if stage.offload_optimizer else shown(stage.optimizer_name),
        fix="Set another, or leave model.sharded out.",
    )


def _check_held_out(where: str, held_out: HeldOutConfig, native: int, target: int) -> None:
    """Whether the windows that a stage is watched by fit the model."""
    for field, limit, kind in (("window", native, "native"), ("long_window", target, "stretched")):
        window = getattr(held_out, field)
        if held_out.sequences and window is not None and window > limit:
            raise RecipeError(
                expected=f"{where}.held_out.{field} of at most {limit}, the model's {kind} window",
                got=str(window),
                fix="Lower it.",
            )


def _check_part(where: str, part: PartConfig, native: int, target: int, config: Any) -> None:
    """Whether windows and objective fit the model."""
    objective, num_layers = part.objective, config.num_hidden_layers
    limit = native if objective.needs_native_window else target
    if part.window > limit:
        kind = "native" if objective.needs_native_window else "stretched"
        raise RecipeError(
            expected=f"{where}.window of at most {limit}, the model's {kind} window",
            got=str(part.window),
            fix="Lower the window; the teacher is only right within its native window."
            if objective.needs_native_window
            else "Lower the window or raise rope.factor.",
        )
    if objective.teacher_window is not None and objective.teacher_window > native:
        raise RecipeError(
            expected=f"{where}.objective.teacher_window of at most {native}, the native window",
            got=str(objective.teacher_window),
            fix="Lower it, or leave it out.",
        )
    try:
        objective.weights_by_layer(num_layers, attention_layers(config))
        objective.compared_layers(num_layers)
    except RecipeError as error:
        raise error.reworded(
            expected=f"{where}.{error.expected}",
            fix=f"Correct the layers of {where}.objective; the last is {num_layers - 1} or -1.",
        ) from None


def _check_data(where: str, part: PartConfig, data: DataConfig) -> None:
    """Whether the text of a part has what its objective and its length ask for."""
    data = dataclasses.replace(data, **part.data)
    if part.objective.repeated_weight and not data.repeated_passages:
        raise RecipeError(
            expected=f"repeated passages in the text of {where}, for objective.repeated_weight",
            got="data.repeated_passages of 0",
            fix=f"Set {where}.data.repeated_passages, for instance to 0.1.",
        )
    if data.train == SELF and part.sequences is None:
        raise RecipeError(
            expected=f"{where}.sequences, for text that the model writes itself has no end",
            got="null",
            fix=f"Set {where}.sequences.",
        )


def _stage_arguments(name: str, values: dict[str, Any]) -> RestorationConfig:
    try:
        with naming_stage(name):
            stage = RestorationConfig(**values)
            try_stage(name, stage)
        return stage
    except UserError:
        raise
    except Exception as error:  # of transformers, or of what it reads
        raise RecipeError(
            expected=f"values in stages.{name} that transformers.TrainingArguments accepts",
            got=f"its refusal: {' '.join(str(error).split())[:400].rstrip('.')}",
            fix=f"Correct stages.{name}.",
        ) from error
