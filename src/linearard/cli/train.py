"""`linearard train RECIPE`: all stages, then evaluation and report."""

from __future__ import annotations

import argparse
from typing import Any

from linearard.cli.fields import TeachingParser

_EPILOG = """\
examples:
  linearard train recipes/smollm2-135m-64k.yaml
  linearard train recipes/llama2-7b-32k.yaml --model.name /models/Llama-2-7b-hf --data.train books/
  linearard train my.yaml --stages.restoration.learning_rate 3e-4 --resume
  torchrun --nproc-per-node 2 -m linearard train recipes/llama2-7b-32k.yaml
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register the subcommand."""
    subparsers._parser_class = TeachingParser
    parser = subparsers.add_parser(
        "train",
        help="restore a stretched model with a recipe",
        description="Train every stage of a recipe, evaluate, and write a report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "recipe", help="YAML file, or the name of a recipe that comes with linearard"
    )
    parser.add_argument("--resume", action="store_true", help="go on after an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run, takes_overrides=True)
    return parser


def run(args: argparse.Namespace) -> None:
    """Train, evaluate, report."""
    from linearard.cli.pipeline import train_and_report
    from linearard.train import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    train_and_report(recipe, resume=args.resume, overwrite=args.overwrite, progress=not args.quiet)
