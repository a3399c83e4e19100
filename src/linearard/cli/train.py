"""`linearard train RECIPE`: all stages, then evaluation and report."""

from __future__ import annotations

import argparse
import json
from typing import Any

from linearard.cli.fields import teach_fields

_EPILOG = """\
examples:
  linearard train smollm2-135m-64k
  linearard train llama2-7b-32k --model.name /models/Llama-2-7b-hf --data.train books/
  linearard train my.yaml --stages.restoration.learning_rate 3e-4 --output-dir runs/mine
  linearard train my.yaml --evaluation null --resume
  torchrun --nproc-per-node 2 -m linearard train llama2-7b-32k
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register the subcommand."""
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
    parser.add_argument("--output-dir", help="where to write (default: the recipe's output_dir)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on after an interrupted run")
    again.add_argument("--overwrite", action="store_true", help="replace an earlier run")
    parser.set_defaults(run=run)
    teach_fields(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Train, evaluate, report."""
    from linearard.pipeline import train_and_report
    from linearard.recipe import load_recipe

    named = (
        {"output_dir": json.dumps(args.output_dir, ensure_ascii=False)} if args.output_dir else {}
    )
    recipe = load_recipe(args.recipe, args.overrides | named)
    train_and_report(recipe, resume=args.resume, overwrite=args.overwrite, progress=not args.quiet)
