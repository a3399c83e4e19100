"""A small random model, text and a recipe of one stage, for benchmarks of whole runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

#: What is said of it, by whether it is for a GPU.
RANDOM_MODEL = {True: "a random Llama, 3 M weights", False: "a tiny random Llama"}
_WORDS = ("ship", "island", "wind", "stars", "came", "slept", "under", "the", "and", "where")


def write_random_model(folder: Path, window: int, on_gpu: bool) -> str:
    """A Llama and a tokenizer of bytes, as a folder; on a GPU one whose heads its kernels are for."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import tiny

    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 64}
    changes = shape | {"initializer_range": 0.05} if on_gpu else {}
    tiny.save_tiny_base(folder, max_position_embeddings=window, **changes)
    return str(folder)


def one_stage(folder: Path, model: str, device: str, **stage: Any) -> dict[str, Any]:
    """A recipe of a stage with relations and logits, over text of random words, which is written.

    Args:
        folder: receives text, token cache and the run's output.
        model: a folder or name.
        device: "cuda" or "cpu".
        stage: its fields; `window` among them.
    """
    draw = torch.Generator().manual_seed(0)
    for name, documents in (("train", 24), ("validation", 4)):
        (folder / name).mkdir(parents=True)
        for number in range(documents):
            drawn = torch.randint(len(_WORDS), (8 * stage["window"],), generator=draw).tolist()
            (folder / name / f"{number}.txt").write_text(" ".join(_WORDS[i] for i in drawn))
    objective = {
        "relations": {"q": 1, "k": 1, "v": 1, "qk": 1},
        "logit_weight": 1,
        "logit_positions": None,
    }
    dtype = "bfloat16" if device == "cuda" else "float32"
    return {
        "model": {"name": model, "device": device, "dtype": dtype},
        "rope": {"rope_type": "linear", "factor": 4},
        "adapter": {"kind": "direct"},
        "data": {
            "train": str(folder / "train"),
            "validation": str(folder / "validation"),
            "cache_dir": str(folder / "cache"),
        },
        "stages": {"only": {"objective": objective, **stage}},
        "output_dir": str(folder / "run"),
    }
