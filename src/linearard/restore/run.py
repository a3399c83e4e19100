"""From a request to a verdict: facts, choices, plan, training, evaluation, export."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linearard.data.config import PYDOC
from linearard.errors import CheckpointError, DeviceError, RecipeError
from linearard.evaluation.task_files import read_tasks
from linearard.export import check_output
from linearard.model import ModelConfig, load_restored, resolve_device, written
from linearard.model.view_names import RESTORED, STRETCHED
from linearard.pipeline import Outcome, export_run, say, told, train_and_report
from linearard.planning import PlannedRecipe, SeveralPlan, choose_layout, planned_recipe
from linearard.recipe import Recipe, recipe_from_dict
from linearard.recipe.trackers import check_trackers, tracker_names
from linearard.recipe.yaml_text import parse_yaml
from linearard.restore.choice import Choice
from linearard.restore.compose import Composed, compose
from linearard.restore.description import fitted_windows
from linearard.restore.facts import gather_facts
from linearard.restore.request import RestoreRequest
from linearard.restore.stages import MORE_OWN_TEXT, WINDOWS
from linearard.restore.verdict import Verdict, judge
from linearard.storage import write_json
from linearard.train import RECIPE_FILE
from linearard.train.folder import FINAL
from linearard.train.stages import stage_arguments

EXPORT_FOLDER, VERDICT_FILE = "exported", "verdict.json"
#: Room for what a plan may be short of.
_MARGIN = 0.9


@dataclass(frozen=True)
class RestorePlan:
    """All that is decided before anything expensive.

    Attributes:
        recipe: complete and checked.
        choices: every decision with its reason.
        planned: memory and time.
        target: tokens that the restored model shall read.
        config, tokenizer: of the model, which need not be read again.
        started: when planning began, by `time.perf_counter`.
        several: how GPUs share a run that does not fit one; None: each has a copy of the model.
        lacks_text: whether the text to train on has too few tokens for all windows.
    """

    recipe: Recipe
    choices: list[Choice]
    planned: PlannedRecipe
    target: int
    config: Any
    tokenizer: Any
    started: float
    several: SeveralPlan | None = None
    lacks_text: bool = False


def plan_restoration(
    request: RestoreRequest,
    model: ModelConfig,
    *,
    gpu_memory: float | None = None,
    tasks: str | None = None,
    overrides: dict[str, str] | None = None,
) -> RestorePlan:
    """Decide the recipe, make it fit the GPU, and check every stage of it.

    Args:
        request: what was asked for.
        model: how to load it.
        gpu_memory: bytes that the run may take; None: those of the GPU here, if there is one.
        tasks: folder of task files for the evaluation, or None.
        overrides: recipe fields by dotted name, as on the command line; they have the last word.

    Raises:
        UserError: anything that can be mended, among them a run that cannot fit.
    """
    started = time.perf_counter()
    # All of it is what the user said: no file has a part in it.
    given = {name: parse_yaml(value, f"--{name}") for name, value in (overrides or {}).items()}
    check_trackers(tracker_names(given.get("report_to")))
    on_cpu = resolve_device(model.device).type == "cpu" and gpu_memory is None
    if on_cpu:
        model = dataclasses.replace(model, device="cpu")
        if request.data is None:  # the model would write for hours
            request = dataclasses.replace(request, data=PYDOC)
    facts = gather_facts(request, model, on_cpu=on_cpu)
    section = {
        key: value
        for key, value in dataclasses.asdict(model).items()
        if key == "name" or value != getattr(ModelConfig(name="default"), key)
    }
    composed: Composed = compose(request, facts, section, tasks)

    def load(changes: dict[str, str]) -> Recipe:
        fields = (overrides or {}) | changes
        return recipe_from_dict(composed.source, fields, allowed=composed.source | given)

    limit = None if gpu_memory is None else _MARGIN * gpu_memory
    planned = planned_recipe(load, stage_arguments, limit, facts.config)
    choices, changes = list(composed.choices), {}
    several = _shared_out(planned) if planned.fits is False else None
    if several is not None:
        changes = {"model.sharded": "true"}
        if several.layout.sharing > 1:
            sharing = str(several.layout.sharing)
            changes |= {f"stages.{name}.sequence_parallel": sharing for name in planned.stages}
        reason = f"one GPU would need {planned.plan.needed / 2**30:.1f} GiB"
        choices.append(Choice("GPUs", f"{several.layout.gpus}, {several.layout}", reason))
    elif planned.fits is False:
        if planned.advice is None or planned.advice.together is None:
            assert planned.limit is not None
            least = planned.plan.needed if planned.advice is None else planned.advice.least
            raise DeviceError(
                expected=f"a run within {planned.limit / 2**30:.1f} GiB of the GPU",
                got=f"one of {least / 2**30:.1f} GiB, with all that saves memory",
                fix="Lower --window, or take a larger GPU.",
            )
        together = planned.advice.together
        changes = together.overrides
        shown = ", ".join(f"{name} {value}" for name, value in changes.items())
        reason = f"without, it needs {planned.plan.needed / 2**30:.1f} GiB"
        reason += f"; {together.effect}" if together.effect else ""
        choices.append(Choice("to fit the GPU", shown, reason))
        planned = planned_recipe(
            lambda more: load(changes | more), stage_arguments, limit, facts.config
        )
        if any(name.endswith(".window") for name in changes):
            fitted = fitted_windows(planned.plan, facts.target)
            choices = [fitted if choice.what == WINDOWS else choice for choice in choices]
    recipe = load(changes)
    _check_evaluation(recipe)
    return RestorePlan(
        recipe,
        choices,
        planned,
        facts.target,
        facts.config,
        facts.tokenizer,
        started,
        several,
        lacks_text=any(choice.what == MORE_OWN_TEXT for choice in choices),
    )


def _shared_out(planned: PlannedRecipe) -> SeveralPlan | None:
    """How the processes of a launcher share what does not fit one GPU; None: one process, or too few."""
    gpus = int(os.environ.get("WORLD_SIZE", "1"))
    nodes = max(1, gpus // int(os.environ.get("LOCAL_WORLD_SIZE", gpus)))
    if gpus == 1 or planned.limit is None:
        return None
    several = (planned.plan, planned.stages, gpus, nodes, planned.limit)
    return choose_layout(*several, native_window=planned.native_window)


def _check_evaluation(recipe: Recipe) -> None:
    """Refuse what leaves nothing to judge by, and tasks that cannot be read."""
    asked = recipe.evaluation
    views = None if asked is None else asked.views
    if asked is None or views is None or (views and not {STRETCHED, RESTORED} <= set(views)):
        raise RecipeError(
            expected=f"an evaluation of {STRETCHED} and {RESTORED}, by which the verdict is found",
            got="none" if views is None else f"one of {', '.join(views)}",
            fix="Leave --evaluation as it is decided; `linearard train` runs a recipe without one.",
        )
    if asked.tasks_dir is not None:
        read_tasks(asked.tasks_dir, asked.task_limit, asked.task_split)


def write_recipe(plan: RestorePlan, *, overwrite: bool = False) -> Path:
    """Write the recipe into its output folder, if nothing else is there.

    Args:
        plan: of `plan_restoration`.
        overwrite: replace an earlier recipe, or the run that was made of it.

    Raises:
        CheckpointError: the folder holds something else.
    """
    from linearard.train.folder import claim_folder

    folder = Path(plan.recipe.output_dir)
    with claim_folder(folder, plan.recipe, resume=False, overwrite=overwrite) as claim:
        claim.take()
    return folder / RECIPE_FILE


def restore(
    plan: RestorePlan, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> Verdict:
    """Train, evaluate, judge and export; the verdict is said last, whatever becomes of the export.

    Args:
        plan: of `plan_restoration`.
        resume, overwrite: as of `linearard train`.
        progress: show progress bars.

    Returns:
        The verdict, which also stands in `verdict.json` of the run's folder.

    Raises:
        UserError: anything that can be mended.
    """
    folder = Path(plan.recipe.output_dir)
    exported = folder / EXPORT_FOLDER
    check_output(
        exported,
        "merged",
        plan.recipe.adapter.kind,
        base=plan.recipe.model.name,
        packed=plan.recipe.model.load_in_4bit,
        overwrite=resume or overwrite,
    )
    _check_verdict_file(folder)
    outcome: Outcome = train_and_report(
        plan.recipe,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        config=plan.config,
        tokenizer=plan.tokenizer,
    )
    if outcome.result is None:  # not the process that speaks for the run
        return Verdict([], ["-"], [])
    verdict = judge(outcome.result)
    try:
        written.note(folder, [VERDICT_FILE])
        write_json(
            folder / VERDICT_FILE,
            {
                "good": verdict.good,
                "better": verdict.better,
                "worse": verdict.worse,
                "choices": [dataclasses.asdict(choice) for choice in plan.choices],
                "planned_bytes": plan.planned.plan.peak,
                "peak_bytes": _peak(outcome.result),
                "seconds": round(time.perf_counter() - plan.started, 1),
            },
        )
        restorable = outcome.restorable
        if restorable.sharded:  # the other processes are done, and hold most of it
            base = dataclasses.replace(plan.recipe.model, sharded=False, device="cpu")
            restorable = load_restored(folder / FINAL, base)
        summary = export_run(
            restorable,
            plan.recipe,
            exported,
            story=told(plan.recipe, outcome.result, verdict.lines[-1]),
            overwrite=resume or overwrite,
        )
        say(summary)
    finally:
        for line in verdict.lines:
            say(line)
    return verdict


def _check_verdict_file(folder: Path) -> None:
    path = folder / VERDICT_FILE
    if path.exists() and VERDICT_FILE not in (written.noted(folder) or ()):
        raise CheckpointError(
            expected=f"a folder without {VERDICT_FILE}, which restore will write",
            got=f"{path}, which linearard has not written there",
            fix="Move it, or choose another --output.",
        )


def _peak(result: dict[str, Any]) -> int | None:
    """Most bytes that training allocated on a GPU, of an evaluation's stages."""
    return (
        max((stage.get("peak_bytes", 0) for stage in result["stages"].values()), default=0) or None
    )
