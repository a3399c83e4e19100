"""Train a recipe, measure original, stretched and restored, and write the result down."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from linearard.evaluation import (
    EvaluationConfig,
    EvaluationInputs,
    evaluate,
    held_out_documents,
    prepare_inputs,
    read_texts,
)
from linearard.model import RestorableModel
from linearard.pipeline.profile import inner_profile, stretch_of
from linearard.pipeline.results import write_results
from linearard.processes import is_main_process
from linearard.recipe import Recipe, with_ruler_lengths
from linearard.train import REPORT_FILE, Trackers, prepare_run


@dataclass(frozen=True)
class Outcome:
    """What a run leaves.

    Attributes:
        restorable: the restored model in memory.
        result: of the evaluation; None: the recipe asks for none, or another process speaks for the run.
    """

    restorable: RestorableModel
    result: dict[str, Any] | None


def train_and_report(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    config: Any = None,
    tokenizer: Any = None,
) -> Outcome:
    """Train all stages of a recipe, then evaluate and report as it asks.

    Args:
        recipe: checked by `load_recipe`.
        resume, overwrite, progress, config, tokenizer: as for `prepare_run`.
    """
    options = {"resume": resume, "overwrite": overwrite, "progress": progress}
    run = prepare_run(recipe, **options, config=config, tokenizer=tokenizer)
    evaluation = with_ruler_lengths(recipe, config).evaluation
    with run.claim:
        documents, inputs = None, None
        # A model that is divided among processes is measured by all of them at once.
        if evaluation is not None and (recipe.model.sharded or is_main_process()):
            # Read before training, so that missing text is not found out after it.
            documents = held_out_documents(recipe.data, run.tokenizer, evaluation)
            texts = read_texts(evaluation, recipe.data, run.tokenizer, progress=progress)
            inputs = prepare_inputs(run.tokenizer, run.views, documents, evaluation, texts)
        for note in run.notes:
            say(note)
        if resume and progress:
            before = run.latest
            say(f"going on from {before}" if before else "nothing to go on from: a new run")
        with Trackers(recipe, recipe.output_dir) as trackers:
            result = run.train(trackers=trackers)
            for name, summary in result.summaries.items():
                say(
                    f"stage {name}: {summary['steps']} steps, {summary['tokens']:,} tokens, "
                    f"{summary['seconds']:.1f} s"
                )
            say(f"checkpoint: {result.final}")
            measured = None
            if documents is not None and evaluation is not None:
                measured = measure(
                    result.restorable,
                    documents,
                    evaluation,
                    Path(recipe.output_dir),
                    recipe=recipe.source,
                    training=result.histories,
                    summaries=result.summaries,
                    inputs=inputs,
                    progress=progress and is_main_process(),
                )
                if is_main_process():
                    trackers.evaluated(measured)
        return Outcome(result.restorable, measured if is_main_process() else None)


def measure(
    restorable: RestorableModel,
    documents: list[Tensor],
    config: EvaluationConfig,
    folder: Path,
    *,
    recipe: dict[str, Any],
    training: dict[str, Any] | None = None,
    summaries: dict[str, Any] | None = None,
    inputs: EvaluationInputs | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate all views, print the table, write `evaluation.json` and `report.html`; the result."""
    result = evaluate(
        restorable.model,
        restorable.tokenizer,
        restorable.views(),
        documents,
        config,
        inputs=inputs,
        progress=progress,
        training=training,
        native_window=restorable.rope.native_window,
        model_name=restorable.name,
    )
    result |= inner_profile(restorable, documents, config.agreement_window or 512)
    result |= {"stretch": stretch_of(restorable), "stages": summaries or {}}
    if is_main_process():
        write_results(result, folder, recipe)
        say(f"report: {folder / REPORT_FILE}")
    return result


def say(message: str) -> None:
    """A line for the user, apart from the table on standard output; one process speaks for all."""
    if is_main_process():
        print(message, file=sys.stderr)
