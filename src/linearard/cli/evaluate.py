"""`linearard evaluate RUN`: original, stretched and restored side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_EPILOG = """\
examples:
  linearard evaluate runs/smollm2-135m-64k --evaluation.tasks_dir tasks/
  linearard evaluate runs/x/final --output-dir results/x --evaluation.passkey_lengths "[2048, 65536]"

The checkpoint remembers its recipe. Fields of its sections model, data and evaluation can be
given anew; `linearard train --help` lists them.
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
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Load, measure, report."""
    from linearard.evaluation import (
        EvaluationConfig,
        held_out_documents,
        prepare_inputs,
        read_texts,
    )
    from linearard.model import RestorableModel, load_tokenizer, load_weights
    from linearard.model.causal_lm import ORIGINAL, RESTORED, STRETCHED
    from linearard.pipeline import (
        check_results_folder,
        claim_results_folder,
        measure,
        say,
    )
    from linearard.train import open_checkpoint, own_folder, share_not_kept

    folder, recipe = open_checkpoint(args.checkpoint, args.overrides)
    output = args.output_dir or own_folder(folder, "evaluation")
    check_results_folder(output, overwrite=args.overwrite)
    if note := share_not_kept(folder, recipe):
        say(note)
    config = recipe.evaluation or EvaluationConfig()
    tokenizer = load_tokenizer(recipe.model)
    documents = held_out_documents(recipe.data, tokenizer, config)
    texts = read_texts(config, recipe.data, tokenizer, progress=not args.quiet)
    inputs = prepare_inputs(tokenizer, (ORIGINAL, STRETCHED, RESTORED), documents, config, texts)
    claim_results_folder(output)
    restorable = RestorableModel.load(
        recipe.model, recipe.rope, recipe.adapter, tokenizer=tokenizer, trainable=False
    )
    load_weights(restorable, folder)
    measure(
        restorable,
        documents,
        config,
        output,
        recipe=recipe.source,
        inputs=inputs,
        progress=not args.quiet,
    )
