"""`linearard export RUN OUT`: a model that transformers, vLLM, SGLang, llama.cpp or Ollama load."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

_EPILOG = """\
examples:
  linearard export runs/smollm2-135m-64k exported/                 merged weights
  linearard export runs/llama2-7b-32k adapter/ --format adapter   LoRA beside a stretched config.json
  linearard export runs/smollm2-135m-64k gguf/ --format gguf --gguf-type q8_0   for llama.cpp and Ollama
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
    parser.add_argument("--format", default="merged", help="merged (default), adapter or gguf")
    parser.add_argument(
        "--gguf-type",
        default="auto",
        help="of a GGUF: f32, f16, bf16, q8_0, or auto (default): the precision that the model is loaded in",
    )
    parser.add_argument(
        "--gguf-tokenizer",
        type=Path,
        metavar="FILE",
        help="a GGUF of the base model to copy the tokenizer and chat template from; needed for "
        "SentencePiece tokenizers of models that were no GGUF",
    )
    parser.add_argument(
        "--merge-dtype",
        default="auto",
        metavar="DTYPE",
        help="precision of the trained weights in a merged export or a GGUF: auto (default: the model's, or "
        "the file's, where it holds what training changed, else float32), model or float32",
    )
    parser.add_argument(
        "--reader",
        action="append",
        default=[],
        metavar="PYTHON",
        help="a further Python whose torch and transformers must read the same model, for instance an "
        "environment with transformers 4.57; may be given several times",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> None:
    """Load, export, compare."""
    from linearard.export import ReaderProcess, check_output
    from linearard.export.gguf import GgufOptions, check_gguf
    from linearard.model import RestorableModel, load_config, load_tokenizer, load_weights
    from linearard.pipeline import export_run, say, story_of
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
    gguf, tokenizer = GgufOptions(args.gguf_type, args.gguf_tokenizer), None
    if args.format == "gguf":
        gguf = gguf.with_source(recipe.model)
        tokenizer = load_tokenizer(recipe.model)
        check_gguf(load_config(recipe.model), recipe.rope, gguf, tokenizer=tokenizer)
    if note := share_not_kept(folder, recipe):
        say(note)
    restorable = RestorableModel.load(
        recipe.model, recipe.rope, recipe.adapter, tokenizer=tokenizer, trainable=False
    )
    load_weights(restorable, folder)
    with ExitStack() as stack:
        pythons = [None, *args.reader]
        summary = export_run(
            restorable,
            recipe,
            args.output,
            args.format,
            story=story_of(recipe, folder),
            overwrite=args.overwrite,
            merge_dtype=args.merge_dtype,
            readers=[stack.enter_context(ReaderProcess(python)) for python in pythons],
            gguf=gguf,
        )
    say(summary)
