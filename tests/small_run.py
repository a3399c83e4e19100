"""A run of seconds through the real command line: two stages on a tiny model, and readers of its results."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from forked import Forked
from linearard.cli.main import main

_WORDS = (
    "the",
    "a",
    "ship",
    "sea",
    "wind",
    "sail",
    "captain",
    "night",
    "star",
    "came",
    "went",
    "saw",
)


#: The smallest evaluation, as the value of `--evaluation`.
EVALUATION = json.dumps(
    {
        "perplexity_windows": [48],
        "perplexity_tokens": 200,
        "agreement_window": 48,
        "agreement_tokens": 200,
        "passkey_lengths": [],
    }
)


def write_text(folder: Path, *, documents: int = 6, words: int = 900, seed: int = 0) -> Path:
    """A folder of plain text, a few thousand tokens a document."""
    folder.mkdir(parents=True, exist_ok=True)
    source = random.Random(seed)
    for index in range(documents):
        text = " ".join(source.choice(_WORDS) for _ in range(words))
        (folder / f"book{index}.txt").write_text(text)
    return folder


def write_noise(folder: Path, *, documents: int = 8, characters: int = 20_000) -> Path:
    """A folder of text without any sense: printable characters, drawn evenly."""
    folder.mkdir(parents=True, exist_ok=True)
    source = random.Random(7)
    for index in range(documents):
        drawn = (chr(source.randrange(32, 127)) for _ in range(characters))
        (folder / f"noise{index}.txt").write_text("".join(drawn))
    return folder


def small_recipe(folder: Path, base: Path, **changes: Any) -> dict[str, Any]:
    """Two stages: 6 steps of relation distillation in two epochs, then 4 of language modelling.

    Args:
        folder: receives text, token cache and output.
        base: a model folder.
        changes: values by dotted field name with `__` for the dot: `stages__cpt__window=32`.
    """
    recipe: dict[str, Any] = {
        "model": {"name": str(base), "dtype": "float32", "device": "cpu"},
        "rope": {"rope_type": "linear", "factor": 4},
        "adapter": {"r": 4, "alpha": 8, "dropout": 0.1},
        "data": {
            "train": str(write_text(folder / "train")),
            "validation": str(write_text(folder / "validation", documents=2, seed=1)),
            "cache_dir": str(folder / "cache"),
        },
        "stages": {
            "restoration": {
                "window": 48,
                "sequences": 12,
                "num_train_epochs": 2,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "learning_rate": 1e-2,
                "warmup_steps": 1,
                "save_steps": 2,
            },
            "cpt": {
                "window": 96,
                "sequences": 8,
                "per_device_train_batch_size": 2,
                "learning_rate": 1e-2,
                "warmup_steps": 1,
                "save_steps": 1,
                "objective": {"relations": {}, "lm_weight": 1},
            },
        },
        "output_dir": str(folder / "run"),
    }
    for name, value in changes.items():
        *parents, last = name.split("__")
        node = recipe
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return recipe


def one_stage(folder: Path, base: Path, **stage: Any) -> dict[str, Any]:
    """A recipe of one stage without dropout: four batches of windows of 48 tokens."""
    recipe = small_recipe(folder, base, adapter__dropout=0.0)
    plain = {"window": 48, "sequences": 16, "learning_rate": 1e-2, "warmup_steps": 1}
    recipe["stages"] = {"only": plain | stage}
    return recipe


def write_recipe(recipe: dict[str, Any], path: Path) -> Path:
    """The recipe as a YAML file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def train(recipe: dict[str, Any], *flags: str) -> Path:
    """`linearard train` in this process; the run's folder."""
    folder = Path(recipe["output_dir"])
    path = write_recipe(recipe, folder.parent / f"{folder.name}.yaml")
    assert main(["train", str(path), "--quiet", *flags]) == 0
    return folder


def command(*arguments: str, processes: int = 1) -> list[str]:
    """`python -m linearard ARGUMENTS`, under torchrun where several processes are asked for."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(launcher if processes > 1 else []), "-m", "linearard", *arguments]


def environment() -> dict[str, str]:
    """For child processes: one thread each, and no progress of other libraries."""
    return os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def start(*arguments: str, processes: int = 1) -> Forked:
    """Begin the command line in processes of its own."""
    return Forked(["-m", "linearard", *arguments], processes=processes, environment=environment())


def launch(*arguments: str, processes: int = 1) -> subprocess.CompletedProcess:
    """Run the command line in processes of its own and wait."""
    with start(*arguments, processes=processes) as running:
        return running.wait()


def losses(run: Path, stage: str = "stage1-only") -> list[float]:
    """Logged loss of each step of a stage."""
    return [entry["loss"] for entry in history(run, stage) if "loss" in entry]


def history(run: Path, stage: str) -> list[dict[str, float]]:
    """Trainer's log of a stage, from its newest checkpoint."""
    folders = (run / stage).glob("checkpoint-*")
    newest = max(folders, key=lambda path: int(re.sub(r"\D", "", path.name)))
    return json.loads((newest / "trainer_state.json").read_text())["log_history"]


def final_bytes(run: Path) -> dict[str, bytes]:
    """The trained weights of a run as they lie on disk."""
    found = {path.name: path.read_bytes() for path in (run / "final").glob("*.safetensors")}
    assert found, f"no weights in {run / 'final'}"
    return found


def final_weights(run: Path) -> dict[str, Any]:
    """The trained weights of a run as tensors."""
    from safetensors.torch import load_file

    (path,) = (run / "final").glob("*.safetensors")
    return load_file(path)
