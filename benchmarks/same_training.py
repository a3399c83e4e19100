"""Train the plain way several times and the fast way once: losses, final weights, and gradients.

    python -m benchmarks same_training --model FOLDER_OR_GGUF --out FILE.json      a GPU, four minutes

The plain way: transformers' own layers, peft's LoRA, flash attention, plain output losses, kernels launched
one by one. The fast way: what the package does on a GPU. The plain runs read the same text; all but the
first start from LoRA weights moved by a bfloat16 rounding (2^-9), each by another draw. What they differ by
from the first is one noise that the fast way is compared with. They are moved once and round alike in every
step after it, and so are nearer to each other than to whatever rounds in other places, as the fast way does.
So all of them are compared with a run of the plain way in float32 too, and the gradients of eight steps, all
at the weights that the first plain run ended with, with those of float32. The file it writes:

    device, torch, triton, transformers, python, commit, date    where and when
    model, steps, window, learning_rate                          what
    fast_mean, fast_max, fast_weights      from the first plain run: relative differences of the losses of
        all steps, and of the final weights, over the way that the first run moved them
    noise_mean, noise_max, noise_weights   the same of the other plain runs, one figure each
    float32_fast_mean, _max, _weights      the same of the fast run from the one in float32
    float32_plain_mean, _max, _weights     and of every plain run, the first one first
    gradient_fast, gradient_plain          relative differences (Frobenius) from float32's, one a step
    first_loss, last_loss, last_loss_fast, last_loss_float32   in nats
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import Dataset

from benchmarks.record import add_arguments, circumstances, write
from linearard.capture import sdpa
from linearard.capture.blocks import PLANLESS
from linearard.distill import ObjectiveConfig
from linearard.model import AdapterConfig, ModelConfig, RestorableModel, load_model
from linearard.ops.pointwise import api, plain
from linearard.recipe.stage import RestorationConfig
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
    others = lambda query, mask: PLANLESS  # noqa: E731
    with (
        mock.patch.object(api, "_kernels", lambda x: plain),
        mock.patch.object(sdpa, "preferred_backends", others),
    ):
        yield


def train(
    restorable: RestorableModel, steps: int, window: int, *, fast: bool, **options: Any
) -> dict[str, Any]:
    """Losses and final weights of a run of `steps` steps of two batches of two windows.

    Args:
        options: fields of its configuration that are to be otherwise.
    """
    vocabulary = restorable.config.vocab_size
    way = contextlib.nullcontext()
    if not fast:
        restorable.fused.undo()
        way = the_plain_way()
    with tempfile.TemporaryDirectory() as folder, way:
        args = RestorationConfig(
            output_dir=folder,
            window=window,
            **({"learning_rate": 1e-3, "bf16": True} | options),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
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


def in_float32(restorable: RestorableModel) -> None:
    """Every weight, the frozen ones too."""
    for p in restorable.model.parameters():
        p.data = p.data.float()


def gradients(
    restorable: RestorableModel, weights: torch.Tensor, window: int, *, fast: bool, bf16: bool
) -> list[torch.Tensor]:
    """Unclipped, of eight steps too small to leave `weights`; on a GPU all but the first are recorded."""
    torch.nn.utils.vector_to_parameters(weights.clone(), restorable.adapter.parameters())
    if not bf16:
        in_float32(restorable)
    found = []

    def keep(*_: Any) -> None:
        found.append(torch.cat([p.grad.flatten() for p in restorable.adapter.parameters()]))

    hook = register_optimizer_step_pre_hook(keep)
    try:
        still = {"learning_rate": 1e-30, "max_grad_norm": 1e30}
        train(restorable, 8, window, fast=fast, bf16=bf16, **still)
    finally:
        hook.remove()
    return found


def compare(
    make: Callable[[], RestorableModel],
    steps: int,
    window: int,
    nudged: int = 1,
    learning_rate: float = 1e-3,
) -> dict[str, Any]:
    """What the fast way differs by from the plain one and from float32, and `nudged` other plain runs."""

    def run(fast: bool, nudge: int | None = None, bf16: bool = True) -> dict[str, Any]:
        restorable = make()
        if not bf16:
            in_float32(restorable)
        if nudge is not None:
            make_noise = torch.Generator(restorable.device).manual_seed(nudge)
            with torch.no_grad():
                for p in restorable.adapter.parameters():
                    noise = torch.randn(p.shape, generator=make_noise, device=p.device)
                    p.mul_(1 + 2.0**-9 * noise)
        start = torch.cat([p.detach().flatten() for p in restorable.adapter.parameters()])
        began = time.perf_counter()
        options = {"fast": fast, "bf16": bf16, "learning_rate": learning_rate}
        found = train(restorable, steps, window, **options)
        seconds, way = time.perf_counter() - began, "fast" if fast else "plain"
        kind = f"{way}, nudge {nudge}" if bf16 else "float32"
        print(f"{kind}: {seconds:.0f} s, loss {found['losses'][-1]:.5f}", flush=True)
        return found | {"moved": (found["weights"] - start).norm()}

    reference, fast = run(False), run(True)
    others = [run(False, seed) for seed in range(1, nudged + 1)]
    float32 = run(False, bf16=False)
    names = ("mean", "max", "weights")

    def apart(other: dict[str, Any], origin: dict[str, Any]) -> dict[str, float]:
        losses = (other["losses"] / origin["losses"] - 1).abs()
        weights = (other["weights"] - origin["weights"]).norm() / origin["moved"]
        values = (losses.mean(), losses.max(), weights)
        return {name: float(value) for name, value in zip(names, values, strict=True)}

    def each(some: list[dict[str, Any]], origin: dict[str, Any]) -> dict[str, list[float]]:
        found = [apart(other, origin) for other in some]
        return {name: [row[name] for row in found] for name in names}

    exact, *rounded = (
        gradients(make(), reference["weights"], window, fast=fast, bf16=bf16)
        for fast, bf16 in ((False, False), (True, True), (False, True))
    )
    from_exact = [
        [
            float((found - right).norm() / right.norm())
            for found, right in zip(way, exact, strict=True)
        ]
        for way in rounded
    ]

    compared = {
        "fast": apart(fast, reference),
        "noise": each(others, reference),
        "float32_fast": apart(fast, float32),
        "float32_plain": each([reference, *others], float32),
    }
    return {
        **{f"{what}_{name}": x for what, found in compared.items() for name, x in found.items()},
        "gradient_fast": from_exact[0],
        "gradient_plain": from_exact[1],
        "first_loss": float(reference["losses"][0]),
        "last_loss": float(reference["losses"][-1]),
        "last_loss_fast": float(fast["losses"][-1]),
        "last_loss_float32": float(float32["losses"][-1]),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks same_training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--model", required=True, help="folder, hub id or GGUF file")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--nudged", type=int, default=6, help="plain runs beside the first")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)

    config = ModelConfig(name=options.model, device=options.device, dtype="bfloat16")
    model, tokenizer = load_model(config)

    def make() -> RestorableModel:
        torch.manual_seed(0)
        adapter = AdapterConfig(r=256, alpha=512, dropout=0.0)
        scaling = {"rope_type": "linear", "factor": 8}
        made = RestorableModel(copy.deepcopy(model), tokenizer, scaling, adapter)
        made.fused.everywhere = True
        return made

    result = {
        **circumstances(options.commit, options.device),
        "model": options.model.rpartition("/")[2],
        "steps": options.steps,
        "window": options.window,
        "learning_rate": options.learning_rate,
        **compare(make, options.steps, options.window, options.nudged, options.learning_rate),
    }
    write(options.out, result)
    print(f"{result}\nwrote {options.out}")
