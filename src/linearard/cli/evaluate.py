"""`linearard evaluate RUN`: original, stretched and restored side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

_EPILOG = """\
examples:
  linearard evaluate runs/smollm2-135m-64k --evaluation.tasks_dir tasks/
  linearard evaluate runs/x/final --output-dir results/x --evaluation.passkey_lengths "[2048, 65536]"
  linearard evaluate runs/x --lm-eval hellaswag,gsm8k --evaluation.lm_eval_limit 200
  linearard evaluate runs/x --lm-eval ruler
  linearard evaluate runs/x --evaluation.tasks_dir tasks/ --fail-below tasks_kept=.98

The checkpoint remembers its recipe. Fields of its sections model, data and evaluation can be
given anew; `linearard train --help` lists them. Tasks of lm-eval and RULER, names for --fail-below:
docs/how-to/evaluation.md.

Exit code 3: the restored model is below a --fail-below; the rows are named.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a restored model against the original",
        description="Evaluate a checkpoint: table, JSON and HTML report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument(
        "--output-dir", type=Path, help="where to write (default: evaluation/ in the checkpoint)"
    )
    parser.add_argument(
        "--lm-eval",
        metavar="TASKS",
        help="tasks of lm-eval, with commas between; ruler is six of RULER's (needs linearard[lm-eval])",
    )
    parser.add_argument(
        "--fail-below",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="end with exit code 3 where the restored model is below it; may be given several times",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Load, measure, report."""
    from linearard.evaluation import (
        EvaluationConfig,
        check_gates,
        failed_gates,
        held_out_documents,
        prepare_inputs,
        read_gates,
        read_texts,
    )
    from linearard.model import RestorableModel, load_tokenizer, load_weights
    from linearard.model.view_names import ORIGINAL, RESTORED, STRETCHED
    from linearard.pipeline import (
        check_results_folder,
        claim_results_folder,
        measure,
        say,
    )
    from linearard.recipe import with_ruler_lengths
    from linearard.recipe.trackers import check_trackers
    from linearard.train import Trackers, open_checkpoint, own_folder, share_not_kept

    gates = read_gates(args.fail_below)
    overrides = dict(args.overrides)
    if args.lm_eval is not None:
        names = [name.strip() for name in args.lm_eval.split(",") if name.strip()]
        overrides["evaluation.lm_eval"] = json.dumps(names, ensure_ascii=False)
    folder, recipe = open_checkpoint(args.checkpoint, overrides)
    check_trackers(recipe.report_to)
    recipe = with_ruler_lengths(recipe)
    output = args.output_dir or own_folder(folder, "evaluation")
    check_results_folder(output, overwrite=args.overwrite)
    if note := share_not_kept(folder, recipe):
        say(note)
    config = recipe.evaluation or EvaluationConfig()
    tokenizer = load_tokenizer(recipe.model)
    documents = held_out_documents(recipe.data, tokenizer, config)
    texts = read_texts(config, recipe.data, tokenizer, progress=not args.quiet)
    inputs = prepare_inputs(tokenizer, (ORIGINAL, STRETCHED, RESTORED), documents, config, texts)
    check_gates(gates, config, inputs.task_names)
    claim_results_folder(output)
    with Trackers(recipe, output) as trackers:
        restorable = RestorableModel.load(
            recipe.model, recipe.rope, recipe.adapter, tokenizer=tokenizer, trainable=False
        )
        load_weights(restorable, folder)
        result = measure(
            restorable,
            documents,
            config,
            output,
            recipe=recipe.source,
            inputs=inputs,
            progress=not args.quiet,
        )
        trackers.evaluated(result)
    failed = failed_gates(gates, result)
    for line in failed:
        say(f"failed: {line}")
    return 3 if failed else 0
