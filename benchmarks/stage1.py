"""The paper's stages through the real trainer, on models of the exact shape with random weights.

    python -m benchmarks stage1 --model llama2-7b --out FILE.json            # 0.5 s a step
    python -m benchmarks stage1 --model llama3-8b --out FILE.json            # 8,192 tokens
    python -m benchmarks stage1 --model mistral-7b --out FILE.json           # sliding window of 4,096
    python -m benchmarks stage1 --model llama2-7b --small --out FILE.json    # 24 GiB
    python -m benchmarks stage1 --model llama2-7b --small --load-in-4bit --out FILE.json         # 12 GiB
    python -m benchmarks stage1 --model llama31-8b --small --warm-up 1 --steps 1 --no-profile \\
        --out FILE.json                                                      # windows of 131,072
    python -m benchmarks stage1 --model llama2-7b --naive --out FILE.json    # plain PyTorch
    python -m benchmarks stage1 --model llama2-7b --stage2 --steps 8 --out FILE.json             # 32,768
    python -m benchmarks stage1 --model llama3-8b --stage2 --tokens 131072 --checkpointing --steps 3 \\
        --out FILE.json

Stage 1: Q/Q + K/K + V/V; stage 2: the next token. LoRA of rank 1024 on q, k and v with dropout, scaling by
8, random tokens. A step is a sequence: forward of teacher and student, backward, clipping, AdamW,
the refusal of bad steps and a log. The first steps (kernels are compiled, the step is recorded) are not
counted. The file it writes, by
NAME = MODEL or MODEL.stage2.TOKENS, and .small, .checkpointing (.keptN: but the last N layers), .4bit or
.naive:

    runs: NAME ->
        device, torch, triton, transformers, python, commit, date    where and when
        model, tokens, rank, dropout, steps, options             what
        ms                    of a step: {p20, p50, p80}, from events on the device
        phases                median ms of a step's phases: between (batch, log), batch (forward, backward,
                              clipping), optimizer
        seconds_per_sequence  mean of all counted steps
        stage_minutes         576 sequences at that speed
        peak_gib, reserved_gib    most memory allocated (reserved), loading and warm-up included
        startup_gib           allocated before the first step
        tflop, peak_tflops    needed operations of a step (`counting.step_flops`); a second, of a product of
                              8192 x 8192 bf16 matrices in this process
        mfu                   tflop over seconds_per_sequence over peak_tflops
        loss                  first and last: finite and falling
        kernels               of one more step: ms of all its kernels, of relation KL, attention, matrix
                              products, copies and the rest; and span, from first begin to last end
        passes                ms of teacher, student and backward with clipping, in the last step that was
                              launched kernel by kernel
        relation_share        of the relation KL: its ms over the span
        top                   the kernels with most time: name, ms, calls
    ratios: SHAPE -> time and memory of NAME.naive over NAME, where the file holds both

Runs are added to a file that exists. `--naive` is two models, every layer's q, k and v kept by hooks, the
whole model with its LM head, eager peft, and the KL in dense float32 matrices, a few heads at a time so that
it survives; at the largest of 4096, 2048, 1024 tokens that does.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from typing import Any

import torch
from torch.utils.data import Dataset

from benchmarks.record import add_arguments, circumstances, quantiles, write
from benchmarks.stage1_naive import naive_step
from benchmarks.step_profile import Clock, Profile
from benchmarks.training_step import MODELS, SELF, build
from linearard.counting import step_flops
from linearard.distill import ObjectiveConfig
from linearard.model import AdapterConfig
from linearard.recipe.stage import RestorationConfig
from linearard.train.progress import peak_flops
from linearard.train.trainer import RestorationTrainer

TOKENS = {
    "llama2-7b": 4096,
    "llama3-8b": 8192,
    "mistral-7b": 8192,
    "llama31-8b": 131072,
    "smollm2-135m": 4096,
    "tiny": 64,
}
OBJECTIVES: dict[bool, dict[str, Any]] = {  # by whether it is stage 2
    False: {"relations": dict(SELF)},
    True: {"relations": {}, "lm_weight": 1.0},
}
LONG = 32768  # tokens of a sequence of stage 2
SMALL = {
    "gradient_checkpointing": True,
    "offload_optimizer": True,
    "offload_teacher": True,
}
SEQUENCES = 576


class RandomTokens(Dataset):
    """Windows of random tokens."""

    def __init__(self, count: int, tokens: int, vocabulary: int) -> None:
        make = torch.Generator().manual_seed(0)
        self._ids = torch.randint(vocabulary, (count, tokens), generator=make)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._ids[index]}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train for the counted steps and some before; what the file says of it."""
    settings = dict(SMALL) if options.small else {}
    if options.checkpointing:
        settings |= {"gradient_checkpointing": True, "kept_layers": options.kept_layers}
    if options.no_graphs:
        settings["cuda_graphs"] = False
    torch.cuda.reset_peak_memory_stats()
    restorable = build(options.model, options.rank, "cuda", options.dropout, options.load_in_4bit)
    tokens, startup = options.tokens, torch.cuda.memory_allocated()
    if options.load_in_4bit:  # weights that are read from files are never all dense
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    steps = options.warm_up + options.steps
    clock, profile = Clock(options.warm_up, steps), Profile(steps + 1)
    trained = steps if options.no_profile else steps + 1
    with tempfile.TemporaryDirectory() as folder:
        args = RestorationConfig(
            output_dir=folder,
            window=tokens,
            learning_rate=2e-5,
            bf16=True,
            objective=ObjectiveConfig(**OBJECTIVES[options.stage2]),
            save_strategy="no",
            disable_tqdm=True,
            max_steps=trained,
            **settings,
        )
        text = RandomTokens(trained, tokens, restorable.config.vocab_size)
        trainer = RestorationTrainer(restorable, args, text, callbacks=[clock, profile])
        profile.watch(trainer)
        trainer.train()
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    times = clock.milliseconds()
    seconds = sum(times) / len(times) / 1000
    needed = step_flops(
        restorable.config,
        args.objective,
        tokens,
        1,
        adapter=AdapterConfig(r=options.rank),
        native_window=restorable.rope.native_window,
    )
    rate = peak_flops(restorable.device, torch.bfloat16)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "model": options.model,
        "tokens": tokens,
        "rank": options.rank,
        "dropout": options.dropout,
        "steps": options.steps,
        "options": settings,
        **({"load_in_4bit": True} if options.load_in_4bit else {}),
        "ms": quantiles(times),
        "phases": clock.phases(),
        "seconds_per_sequence": round(seconds, 4),
        **({} if options.stage2 else {"stage_minutes": round(seconds * SEQUENCES / 60, 2)}),
        "peak_gib": gib(peak),
        "reserved_gib": gib(reserved),
        "startup_gib": gib(startup),
        "tflop": round(needed / 1e12, 2),
        "peak_tflops": round(rate / 1e12, 1),
        "mfu": round(needed / seconds / rate, 4),
        "loss": [round(losses[0], 6), round(losses[-1], 6)],
        **({} if options.no_profile else profile.read()),
    }


def gib(count: int) -> float:
    return round(count / 2**30, 3)


def naive(options: argparse.Namespace) -> dict[str, Any]:
    """The largest size that survives, and its time and memory."""
    for tokens in (options.tokens, 4096, 2048, 1024, 512):
        if tokens > options.tokens:
            continue
        torch.cuda.reset_peak_memory_stats()
        try:
            times, loss = naive_step(options.model, options.rank, tokens, rounds=5)
        except torch.OutOfMemoryError:
            times = None
        if times:
            return {
                "model": options.model,
                "tokens": tokens,
                "rank": options.rank,
                "ms": quantiles(times),
                "seconds_per_sequence": round(sorted(times)[len(times) // 2] / 1000, 4),
                "peak_gib": gib(torch.cuda.max_memory_allocated()),
                "loss": [round(x, 6) for x in loss],
            }
        gc.collect()
        torch.cuda.empty_cache()
    raise SystemExit("no size of the naive way fits this GPU")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks stage1",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--model", choices=MODELS, default="llama2-7b")
    parser.add_argument("--tokens", type=int, help="default: the model's native window, or 8192")
    parser.add_argument("--rank", type=int, default=1024)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--warm-up", type=int, default=6, help="steps that are not counted")
    parser.add_argument("--small", action="store_true", help=f"with {', '.join(SMALL)}")
    parser.add_argument("--load-in-4bit", action="store_true", help="base weights by bitsandbytes")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing alone")
    parser.add_argument("--kept-layers", type=int, default=0, help="last layers not recomputed")
    parser.add_argument("--no-graphs", action="store_true", help="launch kernel by kernel")
    parser.add_argument("--no-profile", action="store_true", help="without the one more step")
    parser.add_argument("--stage2", action="store_true", help="next-token loss on long sequences")
    parser.add_argument("--naive", action="store_true", help="plain PyTorch instead")
    options = parser.parse_args(arguments)
    options.tokens = options.tokens or (LONG if options.stage2 else TOKENS[options.model])
    if options.stage2 and options.naive:
        parser.error("--naive is a way of stage 1")
    if not torch.cuda.is_available():
        raise SystemExit("stage1 measures an NVIDIA GPU; there is none")
    kinds = ("small", "naive", "checkpointing")
    stage = ["stage2", f"{options.tokens // 1024}k"] if options.stage2 else []
    kept = [f"kept{options.kept_layers}"] if options.kept_layers else []
    chosen = [kind for kind in kinds if getattr(options, kind)]
    chosen += ["4bit"] if options.load_in_4bit else []
    name = ".".join([options.model, *stage, *chosen, *kept])
    run = naive(options) if options.naive else measure(options)
    result: dict[str, Any] = {"runs": {}}
    if options.out.exists():
        result["runs"] = json.loads(options.out.read_text())["runs"]
    result["runs"][name] = circumstances(options.commit) | run
    result["ratios"] = {
        shape: {
            "time": round(other["seconds_per_sequence"] / ours["seconds_per_sequence"], 2),
            "memory": round(other["peak_gib"] / ours["peak_gib"], 2),
            "tokens": [other["tokens"], ours["tokens"]],
        }
        for shape, ours in result["runs"].items()
        if (other := result["runs"].get(f"{shape}.naive"))
    }
    write(options.out, result)
    shown = {key: value for key, value in run.items() if key != "top"}
    print(f"{name}: {json.dumps(shown)}\nwrote {options.out}")
