"""`linearard demo`: a real model, stretched and restored on this CPU, with a report to look at."""

from __future__ import annotations

import argparse
import json
from typing import Any

_RECIPE = "demo-cpu"


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="restore SmolLM2-135M on the CPU, from start to report",
        description="Stretch SmolLM2-135M-Instruct eightfold, restore it on a little text, and compare "
        "original, stretched and restored. Needs no network and no GPU. Any field of its recipe can be "
        "given as in `linearard train`, for instance --stages.alignment.sequences 256.",
    )
    parser.add_argument(
        "--model", help="another model: hub id, folder, .gguf file, or package:NAME"
    )
    parser.add_argument(
        "--text", help="your own text: a file or folder (default: Python's documentation)"
    )
    parser.add_argument("--output-dir", default="runs/demo", help="default: runs/demo")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on after an interrupted run")
    again.add_argument("--overwrite", action="store_true", help="replace an earlier run")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Train the demo recipe on the model and text the user named."""
    from linearard.pipeline import say, train_and_report
    from linearard.recipe import load_recipe

    named = {"output_dir": args.output_dir, "model.name": args.model, "data.train": args.text}
    # Quoted, so that a path such as 2024 stays text in YAML.
    overrides = {
        name: json.dumps(value, ensure_ascii=False) for name, value in named.items() if value
    }
    overrides |= args.overrides
    recipe = load_recipe(_RECIPE, overrides)
    say(
        f"Stretching {recipe.model.name} by {recipe.rope['factor']:g} and restoring it on "
        f"{recipe.data.train}; the report will be in {recipe.output_dir}."
    )
    train_and_report(recipe, resume=args.resume, overwrite=args.overwrite, progress=not args.quiet)
