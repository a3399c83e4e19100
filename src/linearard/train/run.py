"""Run a recipe: check it, prepare the text, train each stage, leave a final checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from linearard.errors import DeviceError, RecipeError
from linearard.model import (
    RestorableModel,
    check_packing,
    check_supported,
    check_tokenizer,
    load_config,
    load_tokenizer,
    read_metadata,
    resolve_device,
    resolve_dtype,
    save_checkpoint,
)
from linearard.model.view_names import RESTORED, UNTRAINED
from linearard.processes import is_main_process
from linearard.recipe.recipe import Recipe
from linearard.recipe.stage import RestorationConfig
from linearard.recipe.trackers import check_trackers
from linearard.rope import native_window
from linearard.train import checkpoints
from linearard.train.determinism import deterministic_algorithms
from linearard.train.folder import FINAL, Claim, claim_folder
from linearard.train.processes import check_launcher, keep_steps, started_with
from linearard.train.stage_text import StageText
from linearard.train.stages import stage_arguments
from linearard.train.trackers import Trackers

_SMALLER_STEPS = (
    "Set gradient_checkpointing, or lower per_device_train_batch_size (and raise "
    "gradient_accumulation_steps as much) or window."
)


@dataclass
class RunResult:
    """What a run leaves.

    Attributes:
        restorable: the restored model in memory.
        final: folder of its checkpoint.
        histories: Trainer's log history by stage.
        summaries: tokens, steps and seconds of training by stage; on a GPU the most bytes allocated, too.
    """

    restorable: RestorableModel
    final: Path
    histories: dict[str, list[dict[str, Any]]]
    summaries: dict[str, dict[str, float]]


@dataclass
class PreparedRun:
    """A run in which everything that can be refused without weights was found good.

    Attributes:
        recipe, tokenizer: what it was made from.
        stages, texts: arguments and text of each stage.
        claim: keeps other processes out of the output folder; use it as a context manager. An earlier
            run that is to be replaced stays until `train` has the model.
        notes: what the user should hear, such as that a checkpoint is damaged.
    """

    recipe: Recipe
    tokenizer: Any
    stages: dict[str, RestorationConfig]
    texts: dict[str, StageText]
    claim: Claim
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def views(self) -> list[str]:
        """Names of the views that the trained model will have."""
        *earlier, _ = self.stages
        return [*UNTRAINED, *map(_after, earlier), RESTORED]

    @property
    def latest(self) -> Path | None:
        """The checkpoint that training would go on from, if there is one."""
        folders = (Path(str(stage.output_dir)) for stage in reversed(self.stages.values()))
        found = (checkpoints.latest_complete(folder) for folder in folders)
        return next((path for path in found if path is not None), None)

    def train(
        self, restorable: RestorableModel | None = None, trackers: Trackers | None = None
    ) -> RunResult:
        """Load the model, let it write what it is to read, train every stage, write the checkpoint.

        Args:
            restorable: the model, freshly made as the recipe says, where a caller has it loaded.
            trackers: entered already, where a caller tells them of more than the training.

        Raises:
            NonFiniteLossError: a loss became NaN or infinite; the run can be resumed.
            DeviceError: the device has too little memory, or cannot do what `deterministic` asks for.
            UserError: the weights and the recipe do not fit together.
        """
        if trackers is None:
            with Trackers(self.recipe, self.recipe.output_dir) as own:
                return self.train(restorable, own)
        wanted, device = self.recipe.deterministic, next(iter(self.stages.values())).device
        with deterministic_algorithms(wanted, device):
            return self._train(restorable, trackers)

    def _train(self, restorable: RestorableModel | None, trackers: Trackers) -> RunResult:
        from transformers import set_seed

        recipe = self.recipe
        set_seed(recipe.seed)
        if restorable is None:
            with _enough_memory("the model"):
                restorable = RestorableModel.load(
                    recipe.model, recipe.rope, recipe.adapter, tokenizer=self.tokenizer
                )
        # The other processes wait, so that none looks for checkpoints which this one is removing.
        with next(iter(self.stages.values())).main_process_first(local=False):
            self.claim.take()
        self._write_own_text(restorable)
        histories: dict[str, list[dict[str, Any]]] = {}
        summaries: dict[str, dict[str, float]] = {}
        for name, stage in self.stages.items():
            if summaries:  # what the stage before reached stays visible in the evaluation
                restorable.remember(_after(list(summaries)[-1]))
            with _enough_memory(f"stage {name!r}"):
                histories[name], summaries[name] = _run_stage(
                    restorable, name, stage, self.texts[name], recipe.source, trackers
                )
        final = Path(recipe.output_dir) / FINAL
        if restorable.sharded or is_main_process():
            save_checkpoint(restorable, final, recipe=recipe.source)
        return RunResult(restorable, final, histories, summaries)

    def _write_own_text(self, restorable: RestorableModel) -> None:
        for name, stage in self.stages.items():
            bars = not stage.disable_tqdm and is_main_process()
            with _enough_memory("the model to write text", "End what else is using the device."):
                self.texts[name].write(restorable, progress=bars)


def run_recipe(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> RunResult:
    """Train all stages of a recipe: `prepare_run` and `PreparedRun.train`."""
    run = prepare_run(recipe, resume=resume, overwrite=overwrite, progress=progress)
    with run.claim:
        return run.train()


def prepare_run(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    config: Any = None,
    tokenizer: Any = None,
) -> PreparedRun:
    """Check a recipe, claim its output folder and cut its text, but for what the model is to write.

    No weights are loaded.

    Args:
        recipe: checked by `load_recipe`.
        resume: go on where an earlier, possibly killed, run of the same recipe stopped. With nothing
            to resume it starts from the beginning.
        overwrite: replace an earlier run in the output folder.
        progress: show progress bars, here and in training.
        config, tokenizer: those of the recipe's model, where a caller has read them before: from a
            GGUF file each takes seconds.

    Raises:
        UserError: anything the user can mend.
    """
    check_trackers(recipe.report_to)
    device = resolve_device(recipe.model.device)
    dtype = resolve_dtype(recipe.model.dtype, device)
    config = load_config(recipe.model) if config is None else config
    if recipe.model.load_in_4bit:
        check_packing()
    check_launcher()
    stages = stage_arguments(recipe, config, device, dtype, progress)
    check_supported(config, recipe.rope, recipe.adapter)
    tokenizer = load_tokenizer(recipe.model) if tokenizer is None else tokenizer
    if not recipe.model.resize_embeddings:
        check_tokenizer(tokenizer, config.vocab_size, recipe.model.name)
    claim, notes = Claim(), []
    with next(iter(stages.values())).main_process_first(local=False):
        if is_main_process():
            folder = Path(recipe.output_dir)
            claim = claim_folder(folder, recipe, resume=resume, overwrite=overwrite)
            for stage in stages.values() if resume else ():
                notes += checkpoints.withdraw_damaged(Path(str(stage.output_dir)))
    with claim:  # closed by whatever is refused here, handed on otherwise
        texts: dict[str, StageText] = {}
        native, before = native_window(config, recipe.rope), 0
        started = started_with(stages) if resume else next(iter(stages.values())).world_size
        notes += keep_steps(stages, started)
        options: dict[str, Any] = {"native": native, "progress": progress and is_main_process()}
        options["processes"] = started
        for name, stage in stages.items():
            text = texts[name] = StageText(recipe, stage, tokenizer, before=before, **options)
            before += len(stage.all_parts)
            if resume and not text.unwritten:
                text.check_resumable()
        claimed = claim.pop_all()
        return PreparedRun(recipe, tokenizer, stages, texts, claimed, notes)


def _after(stage: str) -> str:
    return f"after {stage}"


@contextlib.contextmanager
def _enough_memory(purpose: str, fix: str = _SMALLER_STEPS) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            expected=f"enough memory for {purpose}",
            got=str(error).split(". ")[0],
            fix=fix,
        ) from error


def _run_stage(
    restorable: RestorableModel,
    name: str,
    stage: RestorationConfig,
    text: StageText,
    recipe: dict[str, Any],
    trackers: Trackers,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    # Imported here: Trainer pulls in most of transformers, and a refused recipe never gets this far.
    from linearard.train.trainer import RestorationTrainer

    trainer = RestorationTrainer(
        restorable,
        stage,
        text.windows,
        stage=name,
        held_out=text.held_out,
        metadata={"recipe": recipe} | text.circumstances,
        callbacks=trackers.of_stage(),
    )
    on_gpu = restorable.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(restorable.device)
    latest = checkpoints.latest_complete(Path(str(stage.output_dir)))
    if latest is not None and _is_finished(latest):
        seconds = trainer.take_finished(latest)
    else:
        try:
            trainer.train(resume_from_checkpoint=str(latest) if latest else None)
        except ImportError as error:  # an optimizer's own package, for instance
            raise RecipeError(
                expected=f"the packages that stages.{name} needs",
                got=" ".join(str(error).split()),
                fix=f"Install them, or correct stages.{name}.",
            ) from error
        seconds = trainer.seconds
    steps = trainer.state.global_step
    trackers.stage_ended(steps)
    summary = {"steps": steps, "tokens": text.tokens_read(steps), "seconds": seconds}
    if on_gpu:
        summary["peak_bytes"] = torch.cuda.max_memory_allocated(restorable.device)
    return trainer.state.log_history, summary


def _is_finished(checkpoint: Path) -> bool:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    stopped = read_metadata(checkpoint).get("guard", {}).get("stopped", False)
    return stopped or state["global_step"] >= state["max_steps"]
