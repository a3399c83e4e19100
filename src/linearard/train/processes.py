"""How many processes a run was started with, and how others read the same windows in a step."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linearard.capture import SharedSequence, needs_no_mask
from linearard.errors import CheckpointError, ModelError, RecipeError
from linearard.model import RestorableModel, read_metadata
from linearard.recipe import RestorationConfig
from linearard.train import checkpoints

#: The entry of a checkpoint that says it.
PROCESSES = "processes"


def readers(stage: RestorationConfig, processes: int | None = None) -> int:
    """How many windows of a part are read at a time: one a process, or one for those that share it.

    Args:
        stage: its arguments.
        processes: of the run; None: those there are.
    """
    processes = stage.world_size if processes is None else processes
    return processes // math.gcd(stage.sequence_parallel, processes)


def check_launcher() -> None:
    """Refuse a launcher that would wrap the model in an engine of its own; before arguments are made.

    Raises:
        RecipeError: `accelerate launch` was told to.
    """
    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() in ("true", "1"):
            raise RecipeError(
                expected="an accelerate configuration with distributed_type MULTI_GPU, such as "
                "launch/accelerate.yaml",
                got=f"one that asks for {engine}",
                fix="Set model.sharded and sequence_parallel in the recipe: the original and the student are "
                "one copy of the weights, which that engine would not know.",
            )


def sharing(stage: RestorationConfig) -> int:
    """How many processes share a window."""
    return stage.world_size // readers(stage)


def shared_sequence(stage: RestorationConfig, restorable: RestorableModel) -> SharedSequence | None:
    """The processes that share this one's windows, or None: it reads its own.

    Raises:
        ModelError: the model reads whole windows by masks, which such processes have not.
    """
    size = sharing(stage)
    if size == 1:
        return None
    if not needs_no_mask(restorable.model):
        raise ModelError(
            expected="a model that reads whole windows without a mask, for sequence_parallel",
            got=f"{restorable.config.model_type} with "
            f"{restorable.config._attn_implementation.removeprefix('linearard_')} attention",
            fix="Leave sequence_parallel out; model.sharded and gradient_checkpointing save memory too.",
        )
    return SharedSequence.among(size, stage.device)


def check_sharing(name: str, stage: RestorationConfig, config: Any) -> None:
    """Refuse windows and heads that processes cannot share.

    Args:
        name: of the stage.
        stage: its arguments.
        config: the model's text configuration.

    Raises:
        RecipeError: they do not divide them.
    """
    size = sharing(stage)
    wanted = {"query heads of the model": config.num_attention_heads}
    wanted |= {
        f"tokens of stages.{name}{'.parts.' + part if part else ''}.window": config_of_part.window
        for part, config_of_part in stage.all_parts.items()
    }
    for what, number in wanted.items():
        if number % size:
            raise RecipeError(
                expected=f"a number of {what} that the {size} processes of stages.{name}."
                "sequence_parallel divide",
                got=str(number),
                fix="Set sequence_parallel to a divisor of both, or the window to a multiple.",
            )


def started_with(stages: Mapping[str, RestorationConfig]) -> int:
    """How many processes the run was started with, by its newest checkpoint; else those there are."""
    for stage in reversed(stages.values()):
        latest = checkpoints.latest_complete(Path(str(stage.output_dir)))
        if latest is not None:
            return read_metadata(latest).get(PROCESSES) or stage.world_size
    return next(iter(stages.values())).world_size


def keep_steps(stages: Mapping[str, RestorationConfig], started: int) -> list[str]:
    """Let a step hold the batches that it had: `gradient_accumulation_steps` takes in what processes do not.

    Args:
        stages: their arguments, which are changed.
        started: what `started_with` gave.

    Returns:
        What the user should hear.

    Raises:
        CheckpointError: the batches of a step cannot be spread over these processes.
    """
    now = next(iter(stages.values())).world_size
    if now == started:
        return []
    notes = [f"started with {started} processes, going on with {now}"]
    for name, stage in stages.items():
        if stage.parts and readers(stage, started) % readers(stage):
            raise CheckpointError(
                expected=f"a number of processes by which the {started} that the run was started with can be "
                f"divided, for they read batches of one part of stage {name!r} at a time",
                got=str(now),
                fix="Launch as many, or fewer.",
            )
        batches = stage.gradient_accumulation_steps * readers(stage, started)
        each, left = divmod(batches, readers(stage))
        if left:
            raise CheckpointError(
                expected=f"a number of processes among which the {batches} batches of a step of stage "
                f"{name!r} can be spread, such as {started}, as the run was started with",
                got=str(now),
                fix="Launch as many, or another number that divides them.",
            )
        if each != stage.gradient_accumulation_steps:
            was = stage.gradient_accumulation_steps
            notes.append(
                f"stage {name}: gradient_accumulation_steps {each} instead of {was}, for the same steps"
            )
            stage.gradient_accumulation_steps = each
    return notes
