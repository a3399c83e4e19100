"""Does the same seed end in the same bits? The same short training ten times, and operations one by one.

    python -m benchmarks same_bits --runs 10 --out FILE.json        a GPU, 90 seconds; or this CPU

Two processes at once, so that neither finds the same memory or the same quiet, train a small random Llama
(heads of 64, bfloat16 on a GPU; relations of q, k, v and attention, logits) by the ordinary recipe: the
matrices of q, k, v themselves, and LoRA with dropout; with `deterministic: true`, and without. Then each
operation's forward and backward pass is done ten times on the same numbers, while products of random size run
beside it, with PyTorch's deterministic algorithms and without. The file it writes:

    device, torch, triton, transformers, python, commit, date    where and when
    runs, steps, window      what
    training: NAME -> distinct (how many different final weights), runs; SHA-256 as weights
    operations: NAME -> distinct results in ten calls, as any_order and deterministic; where it does not run,
        a text that says why
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.bit_operations import distinct_results
from benchmarks.record import add_arguments, circumstances, write
from benchmarks.small_runs import one_stage, write_random_model
from linearard.recipe import recipe_from_dict
from linearard.train import run_recipe

ADAPTERS: dict[str, dict[str, Any]] = {
    "q, k, v directly": {"kind": "direct"},
    "LoRA": {"kind": "lora", "r": 16, "alpha": 32, "dropout": 0.05},
}
STEPS = 12
PROCESSES = 2
_CALLS = 10


def train(folder: Path, model: str, device: str, window: int, **changes: Any) -> str:
    """SHA-256 of the final weights of one run in an empty folder."""
    stage = {"window": window, "max_steps": STEPS, "per_device_train_batch_size": 2}
    recipe = one_stage(folder, model, device, learning_rate=1e-3, save_strategy="no", **stage)
    run_recipe(recipe_from_dict(recipe | changes), progress=False)
    found = hashlib.sha256()
    for path in sorted((folder / "run" / "final").glob("*.safetensors")):
        found.update(path.read_bytes())
    return found.hexdigest()


def train_often(runs: int, model: str, device: str, window: int) -> dict[str, list[str]]:
    """The hashes of so many runs of every kind, the deterministic ones first.

    cuBLAS decides for a whole process, at its first product, whether it may repeat itself.
    """
    found: dict[str, list[str]] = {}
    for deterministic in (True, False):
        for name, adapter in ADAPTERS.items():
            way = f"{name}, {'deterministic' if deterministic else 'any order'}"
            for _ in range(runs):
                with tempfile.TemporaryDirectory() as folder:
                    changes = {"adapter": adapter, "deterministic": deterministic}
                    weights = train(Path(folder), model, device, window, **changes)
                found.setdefault(way, []).append(weights)
    return found


def together(commands: Sequence[Sequence[str]]) -> list[Any]:
    """What processes that run at once print in their last line, as JSON.

    Raises:
        RuntimeError: one failed.
    """
    with contextlib.ExitStack() as ended:
        running = [
            ended.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            for command in commands
        ]
        said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"exit codes {[process.returncode for process in running]}: see above")
    return [json.loads(text.splitlines()[-1]) for text in said]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks same_bits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--runs", type=int, default=10, help="of each kind, in both processes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # what a child process does
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    window = 1024 if options.device == "cuda" else 64
    if options.part == "training":
        print(json.dumps(train_often(options.runs, options.model, options.device, window)))
        return
    if options.part == "operations":
        print(json.dumps(distinct_results(options.device, _CALLS)))
        return
    result = {
        **circumstances(options.commit, options.device),
        "runs": options.runs,
        "steps": STEPS,
        "window": window,
    }
    here = [sys.executable, "-m", "benchmarks", "same_bits", "--out", "none"]
    here += ["--device", options.device]
    with tempfile.TemporaryDirectory() as folder:
        model = write_random_model(Path(folder) / "model", window, options.device == "cuda")
        shares = [len(range(i, options.runs, PROCESSES)) for i in range(PROCESSES)]
        trained = together(
            [
                [*here, "--part", "training", "--model", model, "--runs", str(share)]
                for share in shares
                if share
            ]
        )
    weights = {name: [one for found in trained for one in found[name]] for name in trained[0]}
    result["training"] = {
        name: {"distinct": len(set(found)), "runs": len(found), "weights": found}
        for name, found in weights.items()
    }
    write(options.out, result)  # the trainings are worth having, whatever becomes of the rest
    (result["operations"],) = together([[*here, "--part", "operations"]])
    write(options.out, result)
    for name, found in result["training"].items():
        print(f"{name}: {found['distinct']} different results in {found['runs']} runs")
    for name, found in result["operations"].items():
        print(f"{name}: {found}")
