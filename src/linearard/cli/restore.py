"""`linearard restore MODEL --window N`: from a model to a restored, evaluated and exported one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_EPILOG = """\
examples:
  linearard restore Qwen/Qwen2.5-Coder-0.5B-Instruct --window 131072 --data books/
  linearard restore model.gguf --window 64k --data text.jsonl --validation held-out.jsonl
  linearard restore meta-llama/Llama-2-7b-hf --window 32k --dry-run --gpu-memory 24GiB

Everything else is decided from the model, its text and the GPU, and said with its reason before anything
expensive. --dry-run stops there and leaves recipe.yaml in the output folder, which `linearard train` runs
to the same result. Any recipe field can be given as in `linearard train` and has the last word.

Exit code 3: the restored model is not better than the stretched one; the rows are named.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "restore",
        help="stretch and restore any RoPE model: one command, start to verdict",
        description="Stretch a model to a window, restore its short-text ability, measure and export it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", help="hub id, folder, .gguf file, or package:NAME for the GGUF in a Python package"
    )
    parser.add_argument("--window", required=True, help="tokens to read afterwards: 131072, 128k")
    parser.add_argument(
        "--data",
        help="text to train on: file, folder, glob, hub data set (default: the model's own)",
    )
    parser.add_argument(
        "--validation",
        help="held-out text (default: at least a twentieth of --data; without it, pydoc)",
    )
    parser.add_argument(
        "--tokens", help="training tokens in all, such as 4.2M (the default on a GPU)"
    )
    parser.add_argument("--gpu-memory", help="what the run may take, such as 24GiB (default: all)")
    parser.add_argument(
        "--native-window", help="tokens the model was trained on, where its configuration says more"
    )
    parser.add_argument("--scaling", default="yarn", help="yarn (default) or linear")
    parser.add_argument("--adapter", default="auto", help="auto (default), direct or lora")
    parser.add_argument("--tasks", help="folder of task files (*.jsonl) to measure, too")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--output", type=Path, help="default: runs/MODEL-WINDOW")
    parser.add_argument(
        "--dry-run", action="store_true", help="decide, plan and write recipe.yaml; train nothing"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on after an interrupted run")
    again.add_argument("--overwrite", action="store_true", help="replace an earlier run")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Decide, say so, and unless it is a dry run, restore."""
    from linearard.pipeline import say
    from linearard.planning.byte_sizes import parse_bytes
    from linearard.restore import (
        RestoreRequest,
        describe,
        parse_tokens,
        parse_window,
        plan_restoration,
        restore,
        write_recipe,
    )
    from linearard.train.folder import check_folder

    model, overrides = _model(args)
    window = parse_window(args.window)
    request = RestoreRequest(
        model=model.name,
        window=window,
        output=args.output or Path("runs") / f"{_short_name(model.name)}-{window // 1024}k",
        data=args.data,
        validation=args.validation,
        tokens=None if args.tokens is None else parse_tokens(args.tokens),
        native_window=None
        if args.native_window is None
        else parse_window(args.native_window, "--native-window"),
        scaling=args.scaling,
        adapter=args.adapter,
        seed=args.seed,
    )
    check_folder(request.output, resume=args.resume, overwrite=args.overwrite)
    plan = plan_restoration(
        request,
        model,
        gpu_memory=None if args.gpu_memory is None else parse_bytes(args.gpu_memory),
        tasks=args.tasks,
        overrides=overrides,
    )
    for line in describe(plan):
        say(line)
    if args.dry_run:
        say(f"recipe: {write_recipe(plan, overwrite=args.overwrite)}")
        return 0
    verdict = restore(plan, resume=args.resume, overwrite=args.overwrite, progress=not args.quiet)
    return 0 if verdict.good else 3


def _model(args: argparse.Namespace) -> tuple[Any, dict[str, str]]:
    """The section `model` of the recipe, and the overrides of the others."""
    from linearard.model import ModelConfig
    from linearard.recipe import build_section
    from linearard.recipe.yaml_text import parse_yaml

    own = {k.removeprefix("model."): v for k, v in args.overrides.items() if k.startswith("model.")}
    rest = {k: v for k, v in args.overrides.items() if not k.startswith("model.")}
    values = {name: parse_yaml(value, f"--model.{name}") for name, value in own.items()}
    return build_section(ModelConfig, {"name": args.model, **values}, "model"), rest


def _short_name(model: str) -> str:
    return Path(model.removeprefix("package:")).stem.lower()
