"""One case of `benchmarks scale`, under torchrun: some steps through the real trainer."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.record import quantiles
from benchmarks.stage1 import RandomTokens
from benchmarks.training_step import MODELS, SELF
from linearard.capture import AttentionTap  # noqa: F401  (registers attention before models are made)
from linearard.distill import ObjectiveConfig
from linearard.model import AdapterConfig, RestorableModel
from linearard.model.loading_shares import read_shares
from linearard.recipe.stage import RestorationConfig
from linearard.train.trainer import RestorationTrainer

_QWEN_32B: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
}
_SHAPES = {**MODELS, "qwen2.5-32b": _QWEN_32B}


class RandomWeights:
    """Tensors of a model without weights, drawn when they are asked for, the same in every process.

    Args:
        model: on the meta device.
        device: where they are drawn.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self._shapes = {name: p.shape for name, p in model.named_parameters()}
        self._device = device

    def read(self, name: str) -> torch.Tensor:
        """One of them."""
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, device=self._device)
        make = torch.Generator(self._device).manual_seed(hash(shape) % 2**31)
        return 0.02 * torch.randn(shape, generator=make, device=self._device)


class StepTimes(transformers.TrainerCallback):
    """When each step ended, by the host, once the device was done."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def build(shape: str, device: torch.device, sharded: bool, rank: int) -> RestorableModel:
    """A model of a shape with random weights: each process's copy, or its share."""
    from accelerate import init_empty_weights

    config = transformers.LlamaConfig(**_SHAPES[shape])
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    adapter = AdapterConfig(r=rank, alpha=2.0 * rank, dropout=0.0)
    scaling = {"rope_type": "linear", "factor": 32}
    torch.manual_seed(0)
    if not sharded:
        with device:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        return RestorableModel(model, None, scaling, adapter)
    with init_empty_weights(include_buffers=False):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    weights, drawing = RandomWeights(model, device), torch.get_rng_state()
    made = RestorableModel(model, None, scaling, adapter, fingerprint="random")
    read_shares(made, weights, device, dtype, drawing)
    return made


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train for the counted steps and two before."""
    on_gpu = args.device == "cuda"
    objective = {"relations": {}, "lm_weight": 1.0} if args.cpt else {"relations": dict(SELF)}
    with tempfile.TemporaryDirectory() as folder:
        config = RestorationConfig(
            output_dir=folder,
            window=args.window,
            learning_rate=2e-5,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            objective=ObjectiveConfig(**objective),
            gradient_accumulation_steps=args.accumulate,
            gradient_checkpointing=True,
            sequence_parallel=args.sharing,
            save_strategy="no",
            disable_tqdm=True,
            max_steps=args.steps + 2,
        )
        device = config.device
        restorable = build(args.shape, device, args.sharded and config.world_size > 1, args.rank)
        before = torch.cuda.memory_allocated() if on_gpu else 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        readers = config.world_size // args.sharing
        windows = (args.steps + 2) * args.accumulate * readers
        text = RandomTokens(windows, args.window, restorable.config.vocab_size)
        times = StepTimes()
        trainer = RestorationTrainer(restorable, config, text, callbacks=[times])
        trainer.train()
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    found = torch.tensor([peak, peak - before], dtype=torch.float64, device=device)
    if config.world_size > 1:
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    seconds = [b - a for a, b in zip(times.ends[1:], times.ends[2:], strict=False)]
    spread = quantiles(seconds)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "gpus": config.world_size,
        "engine": "fsdp" if restorable.sharded else "ddp" if config.world_size > 1 else "one",
        "sharing": args.sharing,
        "shape": args.shape,
        "window": args.window,
        "accumulation": args.accumulate,
        "steps": args.steps,
        "objective": "cpt" if args.cpt else "restoration",
        "seconds": spread,
        "tokens_per_second": args.window * args.accumulate * readers / spread["p50"],
        "peak_gib": float(found[0]) / 2**30,
        "activation_gib": float(found[1]) / 2**30,
        "loss": losses[-1],
    }


def main() -> None:
    """Measure, and let the first process write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", required=True, choices=_SHAPES)
    parser.add_argument("--window", type=int, required=True)
    parser.add_argument("--rank", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--sharing", type=int, default=1)
    parser.add_argument("--sharded", action="store_true")
    parser.add_argument("--cpt", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--case", type=Path, required=True)
    args = parser.parse_args()
    if args.shape == "tiny":
        args.rank, args.steps = 4, 2
    found = measure(args)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        args.case.write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
