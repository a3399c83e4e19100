"""Train twice the plain way and once the fast way, and compare: losses of every step and final weights.

    python tests/train/same_training.py [--model FOLDER] [--steps 60]

The plain way: transformers' own layers, peft's LoRA, flash attention, plain output losses, kernels launched
one by one. The fast way: what the package does on a GPU. What two plain runs on the same text differ by,
when one starts from LoRA weights moved by a bfloat16 rounding (2^-9), is the noise to compare with.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils.data import Dataset

from linearard.capture import attention, sdpa
from linearard.distill import ObjectiveConfig
from linearard.model import AdapterConfig, ModelConfig, RestorableModel
from linearard.ops.pointwise import api, plain
from linearard.train.config import RestorationConfig
from linearard.train.trainer import RestorationTrainer

OBJECTIVE = {
    "relations": {"q": 1.0, "k": 1.0, "v": 1.0, "qk": 1.0},
    "logit_weight": 1.0,
    "logit_positions": None,
}


class Tokens(Dataset):
    """Windows of tokens with repetitions, so that there is something to learn."""

    def __init__(self, count: int, window: int, vocabulary: int) -> None:
        make = torch.Generator().manual_seed(0)
        words = torch.randint(vocabulary, (64, 8), generator=make)
        order = torch.randint(64, (count, window // 8 + 1), generator=make)
        self._ids = words[order].flatten(1)[:, :window]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._ids[index]}


@contextlib.contextmanager
def the_plain_way() -> Iterator[None]:
    """Without fused losses and without cuDNN's attention."""
    others = lambda query, mask: sdpa._OTHERS  # noqa: E731
    with (
        mock.patch.object(api, "_kernels", lambda x: plain),
        mock.patch.object(attention, "preferred_backends", others),
    ):
        yield


def unfuse(model: torch.nn.Module) -> None:
    """Give every module its own code back."""
    for module in model.modules():
        if hasattr(module, "_fused_everywhere"):
            del module.forward


def train(restorable: RestorableModel, steps: int, window: int, *, fast: bool) -> dict[str, Any]:
    """Losses and final weights of a run of `steps` steps of two batches of two windows."""
    vocabulary = restorable.config.vocab_size
    way = contextlib.nullcontext()
    if not fast:
        unfuse(restorable.model)
        way = the_plain_way()
    with tempfile.TemporaryDirectory() as folder, way:
        args = RestorationConfig(
            output_dir=folder,
            window=window,
            learning_rate=1e-3,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            bf16=True,
            use_cpu=restorable.device.type == "cpu",
            objective=ObjectiveConfig(**OBJECTIVE),
            save_strategy="no",
            disable_tqdm=True,
            max_steps=steps,
            cuda_graphs=fast,
        )
        trainer = RestorationTrainer(restorable, args, Tokens(4 * steps, window, vocabulary))
        trainer.train()
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    weights = torch.cat([p.detach().flatten() for p in restorable.adapter.parameters()])
    return {"losses": torch.tensor(losses, dtype=torch.float64), "weights": weights}


def compare(make: Any, steps: int, window: int) -> dict[str, float]:
    """Differences of the fast way from the plain one, and of two plain runs from each other."""

    def run(fast: bool, nudge: float = 0.0) -> dict[str, Any]:
        restorable = make()
        with torch.no_grad():
            make_noise = torch.Generator(restorable.device).manual_seed(1)
            for p in restorable.adapter.parameters():
                noise = torch.randn(p.shape, generator=make_noise, device=p.device)
                p.mul_(1 + nudge * noise)
        start = torch.cat([p.detach().flatten() for p in restorable.adapter.parameters()])
        found = train(restorable, steps, window, fast=fast)
        return found | {"moved": (found["weights"] - start).norm()}

    reference, nudged, fast = run(False), run(False, 2.0**-9), run(True)

    def apart(other: dict[str, Any]) -> tuple[float, float, float]:
        losses = (other["losses"] / reference["losses"] - 1).abs()
        weights = (other["weights"] - reference["weights"]).norm() / reference["moved"]
        return float(losses.mean()), float(losses.max()), float(weights)

    names = ("mean", "max", "weights")
    return {
        **{f"fast_{name}": value for name, value in zip(names, apart(fast), strict=True)},
        **{f"noise_{name}": value for name, value in zip(names, apart(nudged), strict=True)},
        "first_loss": float(reference["losses"][0]),
        "last_loss": float(reference["losses"][-1]),
        "last_loss_fast": float(fast["losses"][-1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--window", type=int, default=1024)
    options = parser.parse_args()

    def make() -> RestorableModel:
        torch.manual_seed(0)
        return RestorableModel.load(
            ModelConfig(name=str(options.model), device="cuda", dtype="bfloat16"),
            {"rope_type": "linear", "factor": 8},
            AdapterConfig(r=256, alpha=512, dropout=0.0),
        )

    print(json.dumps(compare(make, options.steps, options.window), indent=1))


if __name__ == "__main__":
    main()
