"""`linearard export RUN OUT`: a model that transformers 4 and 5 and vLLM load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_EPILOG = """\
examples:
  linearard export runs/smollm2-135m-64k exported/                 merged weights
  linearard export runs/llama2-7b-32k adapter/ --format adapter   LoRA beside a stretched config.json
  linearard export runs/x exported/ --model.name /models/base --model.dtype float32

A model trained over a base in 4 bits is exported dense; where the GPU has no room for that, give
--model.device cpu. The checkpoint remembers its recipe. Fields of its section model can be given anew;
`linearard train --help` lists them.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "export",
        help="write a restored model for others to load",
        description="Export a checkpoint, reload it and compare its logits before saying done.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="a run's folder, or one of its checkpoints")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--format", default="merged", help="merged (default) or adapter")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Load, export, compare."""
    from linearard.export import check_output, export_model
    from linearard.model import RestorableModel, load_weights
    from linearard.pipeline import say
    from linearard.train import open_checkpoint, share_not_kept

    folder, recipe = open_checkpoint(args.checkpoint, args.overrides)
    check_output(
        args.output,
        args.format,
        recipe.adapter.kind,
        base=recipe.model.name,
        packed=recipe.model.load_in_4bit,
        overwrite=args.overwrite,
    )
    if note := share_not_kept(folder, recipe):
        say(note)
    restorable = RestorableModel.load(recipe.model, recipe.rope, recipe.adapter, trainable=False)
    load_weights(restorable, folder)
    comparison = export_model(restorable, args.output, args.format, overwrite=args.overwrite)
    say(
        f"exported to {args.output}: reloaded, logits within {comparison['relative_error']:.2g} "
        f"(relative), top-1 agreement {comparison['top1_agreement']:.3f} on eight prompts"
    )
