"""`linearard plan RECIPE`: memory, time and files of a run, before anything is loaded."""

from __future__ import annotations

import argparse
import json
from typing import Any

_EPILOG = """\
examples:
  linearard plan llama2-7b-32k --gpu-memory 24GiB
  linearard plan my.yaml --model.name /models/Llama-2-7b-hf --adapter.r 256 --json
  linearard plan llama2-7b-32k --gpus 8 --nodes 2 --gpu-memory 80GB
  linearard plan --calibrate                  measure this machine; at most a minute on a GPU

The model's configuration is read, its weights are not: a folder with a config.json will do. Any
recipe field can be given as in `linearard train`. Without a GPU here, the plan is for one in half
precision. Formulas and their limits: docs/concepts/planner.md.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "plan",
        help="memory and time of a recipe before it is run, and what to change so that it fits",
        description="Plan peak memory, time, tokens and checkpoints of every stage of a recipe.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", help="YAML file, or the name of a packaged recipe")
    parser.add_argument(
        "--gpu-memory", help="such as 24GiB or 80GB (default: the memory of the GPU here)"
    )
    parser.add_argument(
        "--gpus", type=int, default=1, help="GPUs of a node: what each of them needs, and sends"
    )
    parser.add_argument("--nodes", type=int, default=1, help="nodes with as many GPUs each")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument(
        "--calibrate", action="store_true", help="measure this device first, and keep the rates"
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Calibrate, plan, advise, print."""
    from linearard.errors import RecipeError
    from linearard.pipeline import say
    from linearard.planning import calibrate, plan_text, planned_recipe, several_text, store
    from linearard.planning.byte_sizes import parse_bytes
    from linearard.recipe import load_recipe
    from linearard.train.stages import stage_arguments

    limit = None if args.gpu_memory is None else parse_bytes(args.gpu_memory)
    if args.calibrate:
        rates = calibrate()
        where = store(rates)
        if not args.json:
            say(f"measured {rates.device}; rates kept in {where}")
    if args.recipe is None:
        if not args.calibrate:
            raise RecipeError(
                expected="a recipe to plan, or --calibrate",
                got="neither",
                fix="Name a recipe: `linearard plan llama2-7b-32k`.",
            )
        if args.json:
            print(json.dumps(rates.to_dict(), indent=1))
        return
    found = planned_recipe(
        lambda overrides: load_recipe(args.recipe, args.overrides | overrides),
        stage_arguments,
        limit,
    )
    if args.gpus < 1 or args.nodes < 1:
        raise RecipeError(
            expected="--gpus and --nodes of at least 1",
            got=f"{args.gpus} and {args.nodes}",
            fix="Give the GPUs of one node, and how many such nodes there are.",
        )
    several = found.on_several(args.gpus, args.nodes) if args.gpus * args.nodes > 1 else []
    if args.json:
        others = {"several": [plan.to_dict() for plan in several]} if several else {}
        print(json.dumps(found.to_dict() | others, indent=1))
    else:
        print(plan_text(found))
        if several:
            print("\n" + several_text(several, found.limit))
