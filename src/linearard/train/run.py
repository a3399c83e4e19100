"""Run a recipe: check it, prepare the text, train each stage, leave a final checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from linearard.data import BlockDataset, DataConfig, token_blocks
from linearard.distill import ObjectiveConfig
from linearard.errors import CheckpointError, RecipeError
from linearard.model import (
    RestorableModel,
    load_config,
    load_tokenizer,
    load_weights,
    read_metadata,
    resolve_device,
    resolve_dtype,
    save_checkpoint,
)
from linearard.rope import check_scaling, native_window, target_window
from linearard.train import checkpoints
from linearard.train.config import RestorationConfig
from linearard.train.recipe import Recipe, parse_yaml, recipe_from_dict

RECIPE_FILE = "recipe.yaml"
_FINAL = "final"
#: Parts of a recipe that do not decide what is trained.
_FREE_TO_CHANGE = {"output_dir", "evaluation"}


@dataclass
class RunResult:
    """What a run leaves.

    Attributes:
        restorable: the restored model in memory.
        final: folder of its checkpoint.
        histories: Trainer's log history by stage.
        summaries: tokens, steps and seconds of training by stage.
    """

    restorable: RestorableModel
    final: Path
    histories: dict[str, list[dict[str, Any]]]
    summaries: dict[str, dict[str, float]]

    @property
    def is_main_process(self) -> bool:
        """Whether this process speaks for the run (rank 0)."""
        return _is_main_process()


def run_recipe(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> RunResult:
    """Train all stages of a recipe.

    Args:
        recipe: checked by `load_recipe`.
        resume: go on where an earlier, possibly killed, run of the same recipe stopped. With nothing
            to resume it starts from the beginning.
        overwrite: replace an earlier run in the output folder.
        progress: show progress bars.

    Raises:
        UserError: anything the user can mend; all but a non-finite loss before the model is loaded.
    """
    stages = _preflight(recipe)
    folder = Path(recipe.output_dir)
    main_process = _is_main_process()
    if main_process:
        _claim_folder(folder, recipe, resume=resume, overwrite=overwrite)
    from transformers import set_seed

    set_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe.model)
    blocks = {
        name: _stage_blocks(recipe.data, stage, tokenizer, progress and main_process)
        for name, stage in stages.items()
    }
    set_seed(recipe.seed)
    restorable = RestorableModel.load(recipe.model, recipe.rope, recipe.adapter)
    histories: dict[str, list[dict[str, Any]]] = {}
    summaries: dict[str, dict[str, float]] = {}
    for name, stage in stages.items():
        if summaries:  # what the stage before reached stays visible in the evaluation
            restorable.remember(f"after {list(summaries)[-1]}")
        histories[name], summaries[name] = _run_stage(
            restorable, name, stage, blocks[name], recipe.source
        )
    final = folder / _FINAL
    if main_process:
        save_checkpoint(restorable, final, recipe=recipe.source)
    return RunResult(restorable, final, histories, summaries)


def open_checkpoint(folder: Path, overrides: dict[str, str] | None = None) -> tuple[Path, Recipe]:
    """The checkpoint and the recipe behind a run's folder, or behind one of its checkpoints.

    Raises:
        CheckpointError: there is none.
        RecipeError: an override is wrong.
    """
    folder = Path(folder)
    if (folder / _FINAL).is_dir():
        folder = folder / _FINAL
    return folder, recipe_from_dict(read_metadata(folder)["recipe"], overrides)


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _preflight(recipe: Recipe) -> dict[str, RestorationConfig]:
    """Everything that can be refused without weights; returns the stages' arguments."""
    device = resolve_device(recipe.model.device)
    dtype = resolve_dtype(recipe.model.dtype, device)
    config = load_config(recipe.model)
    scaling = check_scaling(recipe.rope, config)
    native, target = native_window(config, scaling), target_window(scaling, config)
    stages = {}
    for index, (name, values) in enumerate(recipe.stages.items()):
        objective = ObjectiveConfig(**values.get("objective", {}))
        limit = native if objective.needs_teacher else target
        window = values.get("window", RestorationConfig.window)
        if window > limit:
            kind = "native" if objective.needs_teacher else "stretched"
            raise RecipeError(
                expected=f"stages.{name}.window of at most {limit}, the model's {kind} window",
                got=str(window),
                fix="Lower the window; the teacher is only right within its native window."
                if objective.needs_teacher
                else "Lower the window or raise rope.factor.",
            )
        objective.weights_by_layer(config.num_hidden_layers)
        stages[name] = RestorationConfig(
            output_dir=str(Path(recipe.output_dir) / f"stage{index + 1}-{name}"),
            seed=recipe.seed + index,
            use_cpu=device.type == "cpu",
            bf16=str(dtype) == "torch.bfloat16",
            fp16=str(dtype) == "torch.float16",
            **values,
        )
    return stages


def _claim_folder(folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> None:
    """Make the output folder ours, or refuse; nothing a user made is ever removed."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(
            expected="output_dir to be a folder", got=f"a file at {folder}", fix="Set output_dir."
        )
    content = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    # A run killed in its first moment leaves at most the temporary file of its recipe.
    content = [name for name in content if not name.startswith(f".{RECIPE_FILE}")]
    ours = RECIPE_FILE in content
    if content and not (resume or overwrite):
        raise CheckpointError(
            expected="an empty or new output folder",
            got=f"{folder} with {len(content)} entries",
            fix="Give --resume to go on, --overwrite to replace the run, or another output_dir.",
        )
    if content and not ours:
        raise CheckpointError(
            expected=f"a folder of an earlier run, with {RECIPE_FILE}",
            got=f"{folder} holding {', '.join(sorted(content)[:3])}",
            fix="Choose another output_dir: files that linearard did not write are left alone.",
        )
    if ours and resume:
        _check_same_recipe(folder, recipe)
        return
    if ours:
        for path in [*folder.glob("stage*-*"), folder / _FINAL]:
            if path.is_dir():
                shutil.rmtree(path)
        (folder / RECIPE_FILE).unlink()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{RECIPE_FILE}"
    temporary.write_text(yaml.safe_dump(recipe.source, sort_keys=False))
    os.replace(temporary, folder / RECIPE_FILE)


def _check_same_recipe(folder: Path, recipe: Recipe) -> None:
    stored = parse_yaml((folder / RECIPE_FILE).read_text(), str(folder / RECIPE_FILE))
    before, now = _flat(stored), _flat(recipe.source)
    changed = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and key.split(".")[0] not in _FREE_TO_CHANGE
    )
    if changed:
        raise CheckpointError(
            expected=f"the recipe that {folder} was started with",
            got=", ".join(f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in changed[:3]),
            fix="Resume with the same recipe, or choose another output_dir for the changed one.",
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: value
        for key, child in tree.items()
        for name, value in _flat(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _stage_blocks(
    data: DataConfig, stage: RestorationConfig, tokenizer: Any, progress: bool
) -> BlockDataset:
    return token_blocks(
        dataclasses.replace(data, **stage.data),
        tokenizer,
        stage.window,
        split="train",
        count=stage.sequences,
        progress=progress,
    )


def _run_stage(
    restorable: RestorableModel,
    name: str,
    stage: RestorationConfig,
    blocks: BlockDataset,
    recipe: dict[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    # Imported here: Trainer pulls in most of transformers, and a refused recipe never gets this far.
    from linearard.train.trainer import RestorationTrainer

    trainer = RestorationTrainer(
        restorable,
        stage,
        blocks,
        stage=name,
        metadata={"recipe": recipe, "data": {"fingerprint": blocks.fingerprint}},
    )
    folder = Path(stage.output_dir)
    latest = checkpoints.latest_complete(folder)
    if latest is not None and _is_finished(latest):
        trainer.state = trainer.state.load_from_json(str(latest / "trainer_state.json"))
        load_weights(restorable, latest)
    else:
        trainer.train(resume_from_checkpoint=str(latest) if latest else None)
    history = trainer.state.log_history
    steps = trainer.state.global_step
    seconds = next((e["train_runtime"] for e in reversed(history) if "train_runtime" in e), 0.0)
    sequences = min(
        steps * stage.train_batch_size * stage.gradient_accumulation_steps * stage.world_size,
        int(len(blocks) * max(stage.num_train_epochs, 1)),
    )
    summary = {"steps": steps, "tokens": sequences * stage.window, "seconds": seconds}
    del trainer
    return history, summary


def _is_finished(checkpoint: Path) -> bool:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return state["global_step"] >= state["max_steps"]
