"""What several subcommands do in a row: measure a restored model and write the result down."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from linearard.data import DataConfig, token_documents
from linearard.distill import relation_profile
from linearard.evaluation import EvaluationConfig, comparison_table, evaluate, write_report
from linearard.model import RestorableModel, write_json
from linearard.train import Recipe, RunResult, build_section, run_recipe

RESULT_FILE, REPORT_FILE = "evaluation.json", "report.html"
_PROFILE_WINDOWS = 4


def check_evaluation(recipe: Recipe) -> EvaluationConfig | None:
    """The recipe's evaluation section, checked; None if it has none."""
    if not recipe.evaluation:
        return None
    return build_section(EvaluationConfig, recipe.evaluation, "evaluation")


def train_and_report(recipe: Recipe, *, resume: bool, overwrite: bool, progress: bool) -> RunResult:
    """Train all stages of a recipe, then evaluate and report as it asks."""
    config = check_evaluation(recipe)
    result = run_recipe(recipe, resume=resume, overwrite=overwrite, progress=progress)
    for name, summary in result.summaries.items():
        say(
            f"stage {name}: {summary['steps']} steps, {summary['tokens']:,} tokens, "
            f"{summary['seconds']:.1f} s"
        )
    if config is not None and result.is_main_process:
        measure(
            result.restorable,
            recipe.data,
            config,
            Path(recipe.output_dir),
            recipe=recipe.source,
            training=result.histories,
            summaries=result.summaries,
            progress=progress,
        )
    return result


def measure(
    restorable: RestorableModel,
    data: DataConfig,
    config: EvaluationConfig,
    folder: Path,
    *,
    recipe: dict[str, Any],
    training: dict[str, Any] | None = None,
    summaries: dict[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate all views, print the table, write `evaluation.json` and `report.html`."""
    windows = [*config.perplexity_windows, config.agreement_window]
    documents = token_documents(
        data,
        restorable.tokenizer,
        split="validation",
        limit_tokens=None,
        min_tokens=min((w for w in windows if w), default=1),
    )
    result = evaluate(
        restorable.model,
        restorable.tokenizer,
        restorable.views(),
        documents,
        config,
        progress=progress,
        relations=_relations(restorable, documents, config),
        training=training,
    )
    result["stages"] = summaries or {}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULT_FILE, result)
    write_report(result, folder / REPORT_FILE, recipe=recipe)
    print(comparison_table(result))
    say(f"report: {folder / REPORT_FILE}")
    return result


def say(message: str) -> None:
    """A line for the user, apart from the table on standard output."""
    print(message, file=sys.stderr)


def _relations(
    restorable: RestorableModel, documents: list[Any], config: EvaluationConfig
) -> dict[str, Any]:
    window = min(config.agreement_window or 512, restorable.rope.native_window, 2048)
    long_enough = [document for document in documents if len(document) >= window]
    blocks = [document[None, :window] for document in long_enough[:_PROFILE_WINDOWS]]
    return relation_profile(restorable, blocks) if blocks else {}
