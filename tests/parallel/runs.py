"""Runs of the command line by two processes and by one: the stages of the recommended recipe, in small."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import yaml

import small_run
import tiny
from linearard.cli.main import main
from linearard.train import stage_text
from parallel import forks

_SHORT = {
    "relations": {"qk": 1, "v": 1},
    "logit_weight": 1,
    "logit_positions": None,
    "hidden_weight": 1,
    "hidden_layers": [-1],
}
_LONG = {"relations": {}, "logit_weight": 1, "logit_positions": None}
_PARTS: dict[str, Any] = {
    "short": {
        "window": 48,
        "sequences": 8,
        "batch_size": 2,
        "data": {"repeated_passages": 0.15},
        "objective": {**_SHORT, "lm_weight": 0.3, "repeated_weight": 0.3},
    },
    "long": {
        "window": 128,
        "sequences": 4,
        "data": {"repeated_passages": 0.2},
        "objective": {**_LONG, "teacher_window": 32, "repeated_weight": 3},
    },
    "own": {
        "window": 48,
        "sequences": 8,
        "batch_size": 2,
        "data": {"train": "self"},
        "objective": _SHORT,
    },
    "read": {
        "window": 96,
        "sequences": 4,
        "objective": {**_LONG, "teacher_window": 64, "lm_weight": 0.4},
    },
}
_FOUR_A_STEP = 4


def recommended(
    folder: Path,
    base: Path,
    *,
    kind: str,
    processes: int,
    sharded: bool = False,
    sharing: int = 1,
    **changes: Any,
) -> Path:
    """A recipe file of two stages, four steps each of as many batches whatever the processes.

    Args:
        folder: of the run, and of its text.
        base: a model folder.
        kind: of the adapter. Matrices are trained by Muon, whose products are in bfloat16: at this rate what
            that rounds is below 1e-5 in a weight.
        processes: that will train it.
        sharded, sharing: `model.sharded` and `sequence_parallel`.
        changes: of sections of the recipe.
    """
    batches = {
        "gradient_accumulation_steps": _FOUR_A_STEP * math.gcd(sharing, processes) // processes,
        "sequence_parallel": sharing,
        "save_steps": 2,
        "save_total_limit": None,
    }
    alignment = {"relations": {"qk": 1}, "inputs": "teacher"}
    stages = {
        "alignment": {"window": 48, "sequences": 16, "learning_rate": 2e-3, "objective": alignment},
        "restoration": {
            "muon": kind == "direct",
            "learning_rate": 2e-4,
            "weight_interpolation": 0.9,
            "parts": _PARTS,
        },
    }
    stages = {name: stage | batches for name, stage in stages.items()}
    lora = {"r": 4, "alpha": 8, "dropout": 0.0} if kind == "lora" else {}
    recipe = small_run.small_recipe(folder, base, adapter={"kind": kind, **lora}, stages=stages)
    recipe |= {"rope": {"rope_type": "yarn", "factor": 4}, "output_dir": str(folder / "run")}
    recipe["model"]["sharded"] = sharded
    return small_run.write_recipe(recipe | changes, folder / "recipe.yaml")


def plain(folder: Path, base: Path) -> Path:
    """A recipe file of two stages without parts, for one process: relations, then language modelling."""
    lora = {"r": 4, "alpha": 8, "dropout": 0.0}
    recipe = small_run.small_recipe(folder, base, adapter=lora)
    recipe["output_dir"] = str(folder / "run")
    for stage in recipe["stages"].values():
        stage |= {"gradient_accumulation_steps": 2, "save_steps": 1, "save_total_limit": None}
    return small_run.write_recipe(recipe, folder / "recipe.yaml")


def all_runs(folder: Path) -> None:
    """Run them into `folder`, each by its name."""
    base = tiny.save_tiny_base(folder / "base")

    def run(name: str, *, order_of: int | None = None, processes: int = 1, **options: Any) -> None:
        options |= {"processes": processes}
        _train(recommended(folder / name, base, **options), processes=processes, order_of=order_of)

    measured = {"evaluation": json.loads(small_run.EVALUATION)}
    run("direct-one", kind="direct", order_of=2, **measured)
    run("direct-ddp", kind="direct", processes=2)
    run("direct-fsdp", kind="direct", processes=2, sharded=True, **measured)
    run("lora-one", kind="lora", order_of=2)
    run("lora-fsdp", kind="lora", processes=2, sharded=True)
    run("alone", kind="direct", sharing=2)
    run("sequence", kind="direct", processes=2, sharded=True, sharing=2)
    _train(plain(folder / "plain", base))
    second = "stage2-restoration/checkpoint-2"
    _resume(folder / "direct-fsdp", folder / "two-to-one", second, processes=1, sharded=False)
    _resume(folder / "alone", folder / "one-to-two", second, processes=2, sharded=True)
    first = "stage1-restoration/checkpoint-1"
    _resume(folder / "plain", folder / "one-to-shares", first, processes=2, sharded=True)


def _train(recipe: Path, *flags: str, processes: int = 1, order_of: int | None = None) -> None:
    """Train.

    Args:
        recipe: a file.
        flags: of the command line.
        processes: that train it.
        order_of: read the parts' windows in the order in which so many processes do.
    """

    def work(rank: int) -> int:
        if order_of is not None:
            stage_text.readers = lambda stage, processes=None: order_of
        return main(["train", str(recipe), "--quiet", *flags])

    forks.together(work, processes, recipe.with_suffix(".log"))


def _resume(done: Path, folder: Path, last: str, *, processes: int, sharded: bool) -> None:
    """Go on, by other processes, from a checkpoint of a run that is done."""
    shutil.copytree(done, folder)
    for path in sorted((folder / "run").glob("stage*/checkpoint-*")):
        if str(path.relative_to(folder / "run")) > last:
            shutil.rmtree(path)
    shutil.rmtree(folder / "run/final")
    path = folder / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["model"]["sharded"] = sharded
    recipe |= {"output_dir": str(folder / "run"), "evaluation": None}
    _train(small_run.write_recipe(recipe, path), "--resume", processes=processes)
