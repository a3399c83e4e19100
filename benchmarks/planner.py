"""The planner against measured steps: peak memory and time, on shapes it was not calibrated on.

    python -m benchmarks planner --out benchmarks/results/h200/planner.json       a GPU, under two minutes
    python -m benchmarks planner --shapes ...       peaks on seven families: `planner_shapes`

Models have the exact shape and random weights, built on the device. First `linearard plan --calibrate` runs,
on shapes of its own. Runs that the plan calls too large are started within that much memory, and must end
out of memory; then each case is planned, and a few steps of the trainer are measured. The file it writes:

    device, torch, transformers, python, commit, date      where and when
    calibration    the rates (planning.rates.Rates), and seconds: how long measuring took
    cases: NAME -> model, tokens, batch, rank, recompute, objective, kind;
        peak_gib, planned_gib and ratio_peak; reserved_gib (PyTorch's blocks)
        ms {p20, p50, p80} of a step, planned_ms and ratio_ms with the calibrated rates, shipped_ratio_ms
        with those in the package; mfu, at the calibrated rate of products
        moment, memory: planned GiB by part; parts, waiting_ms: planned time of a batch by kind of work
    too_large: NAME -> limit_gib, needed_gib, out_of_memory: whether it ended so
    within: how many cases are within 10 % of peak and 15 % of time, of how many
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import transformers

from benchmarks import planner_shapes
from benchmarks.record import add_arguments, circumstances, quantiles, write
from benchmarks.training_step import MODELS, SELF
from linearard.counting.shapes import ModelShape
from linearard.distill import ObjectiveConfig
from linearard.model import AdapterConfig, RestorableModel
from linearard.planning import Rates, calibrate, shipped_rates
from linearard.planning.run_plan import plan_run
from linearard.recipe import RestorationConfig
from linearard.train.trainer import RestorationTrainer

GIB = 2**30
FIRST = 4  # steps that are not timed: two plain ones, the recorded one, one more
SHAPES: dict[str, dict[str, Any]] = MODELS | {
    "mistral-7b": {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
    }
}


@dataclass(frozen=True)
class Case:
    model: str
    tokens: int
    batch: int
    rank: int
    recompute: bool = False
    objective: dict[str, Any] = field(default_factory=lambda: {"relations": SELF})
    kind: str = "lora"


EVERYTHING = {"relations": SELF | {"qk": 1.0}, "logit_weight": 1.0, "logit_positions": None}
LANGUAGE = {"relations": {}, "lm_weight": 1.0}
CASES = {
    "llama2-7b, paper": Case("llama2-7b", 4096, 1, 1024),
    "llama2-7b, 24 GiB": Case("llama2-7b", 4096, 1, 256, recompute=True),
    "smollm2, all terms": Case("smollm2-135m", 4096, 4, 128, objective=EVERYTHING),
    "mistral-7b, window": Case("mistral-7b", 8192, 1, 512, recompute=True),
    "llama3-8b, 8192": Case("llama3-8b", 8192, 1, 512),
    "llama2-7b, cpt": Case("llama2-7b", 16384, 1, 256, recompute=True, objective=LANGUAGE),
    "smollm2, direct": Case("smollm2-135m", 8192, 2, 0, kind="direct"),
}
TOO_LARGE = {
    "llama2-7b, paper, 24 GiB": (Case("llama2-7b", 4096, 1, 1024), 24),
    "llama3-8b, 8192, 40 GiB": (Case("llama3-8b", 8192, 1, 512), 40),
}
TINY = {
    "tiny": Case("tiny", 128, 2, 8),
    "tiny, recompute": Case("tiny", 96, 1, 8, recompute=True, objective=LANGUAGE),
}


def configured(case: Case) -> tuple[Any, AdapterConfig]:
    values = dict(SHAPES[case.model])
    kind = {"mistral": transformers.MistralConfig}.get(values.pop("model_type", ""))
    config = (kind or transformers.LlamaConfig)(**values)
    rank = case.rank or 1
    return config, AdapterConfig(kind=case.kind, r=rank, alpha=2.0 * rank, dropout=0.0)


class RandomWindows(torch.utils.data.Dataset):
    """Windows of random tokens."""

    def __init__(self, vocabulary: int, tokens: int, count: int) -> None:
        make = torch.Generator().manual_seed(0)
        self._ids = torch.randint(vocabulary, (count, tokens), generator=make)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._ids[index]}


class Clock(transformers.TrainerCallback):
    """When each step ended on the device."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def arguments_of(case: Case, device: str, steps: int) -> RestorationConfig:
    return RestorationConfig(
        output_dir=tempfile.gettempdir(),
        window=case.tokens,
        objective=ObjectiveConfig(**case.objective),
        per_device_train_batch_size=case.batch,
        gradient_checkpointing=case.recompute,
        max_steps=steps,
        learning_rate=1e-6,
        bf16=True,
        use_cpu=device == "cpu" or not torch.cuda.is_available(),  # planned for a GPU elsewhere
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
    )


def train(case: Case, device: str, steps: int) -> list[float]:
    """Seconds of each step of a run of the trainer, the first ones aside: they compile and record."""
    config, adapter = configured(case)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    restorable = RestorableModel(model, None, {"rope_type": "linear", "factor": 8}, adapter)
    restorable.model.to(device)
    windows = RandomWindows(config.vocab_size, case.tokens, case.batch * (steps + FIRST))
    clock = Clock()
    trainer = RestorationTrainer(
        restorable, arguments_of(case, device, steps + FIRST), windows, callbacks=[clock]
    )
    trainer.train()
    return [end - start for start, end in pairwise(clock.times[FIRST - 1 :])]


def planned(case: Case, rates: Rates, device: str) -> dict[str, Any]:
    config, adapter = configured(case)
    plan = plan_run(
        ModelShape.of(config, adapter),
        {"stage": arguments_of(case, device, 1)},
        native_window=config.max_position_embeddings,
        mixed=True,
        fused=device == "cuda",
        rates=rates,
    )
    (stage,) = plan.stages
    (part,) = stage.parts
    return {
        "planned_gib": round(part.memory.peak / GIB, 3),
        "needed_gib": round(plan.needed / GIB, 3),
        "moment": part.memory.moment,
        "memory": {name: round(x / GIB, 3) for name, x in part.memory.parts.items()},
        "planned_ms": round(1000 * stage.step_seconds, 2),
        "parts": {name: round(1000 * x, 2) for name, x in part.duration.parts.items()},
        "waiting_ms": round(1000 * part.duration.waiting, 2),
        "flops": part.duration.flops,
    }


def measured(case: Case, device: str, rounds: int) -> dict[str, Any]:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = [1000 * seconds for seconds in train(case, device, rounds)]
    found: dict[str, Any] = {"ms": quantiles(times)}
    if device == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 3)
        found["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 3)
    return found


def runs_out(case: Case, limit: float) -> bool:
    """Whether a run ends out of memory within `limit` bytes."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        train(case, "cuda", 1)
        return False
    except torch.OutOfMemoryError:
        return True
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def clean(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def compare(name: str, case: Case, rates: Rates, options: argparse.Namespace) -> dict[str, Any]:
    plan = planned(case, rates, options.device)
    row = {**vars(case), **plan, **measured(case, options.device, options.rounds)}
    row["ratio_ms"] = round(plan["planned_ms"] / row["ms"]["p50"], 3)
    shipped = planned(case, shipped_rates(), options.device)["planned_ms"]
    row["shipped_ratio_ms"] = round(shipped / row["ms"]["p50"], 3)
    row["mfu"] = round(row["flops"] / (row["ms"]["p50"] / 1000) / rates.gemm, 3)
    shown = f"{row['planned_ms']:.0f} ms planned, {row['ms']['p50']:.0f} measured"
    if "peak_gib" in row:
        row["ratio_peak"] = round(plan["planned_gib"] / row["peak_gib"], 3)
        shown += f"; {plan['planned_gib']} GiB planned, {row['peak_gib']} measured"
    print(f"{name}: {shown}", flush=True)
    return row


def within(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "cases": len(rows),
        "peak_10_percent": sum(abs(row.get("ratio_peak", 9) - 1) <= 0.10 for row in rows),
        "time_15_percent": sum(abs(row["ratio_ms"] - 1) <= 0.15 for row in rows),
    }


def main(arguments: list[str]) -> None:
    if any(argument.startswith("--shapes") for argument in arguments):
        planner_shapes.main(arguments)
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks planner",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *TINY])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=95, help="start no case after this long")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    names = options.cases or list(CASES if options.device == "cuda" else TINY)
    rates = calibrate(torch.device(options.device))
    result: dict[str, Any] = {
        **circumstances(options.commit, options.device),
        "calibration": {
            "seconds": round(time.perf_counter() - start, 1),
            "rates": rates.to_dict(),
        },
        "cases": {},
        "too_large": {},
        "left_out": [],
    }
    print(f"calibrated in {result['calibration']['seconds']} s", flush=True)

    def save() -> None:  # after every case: a killed run leaves what it has
        result["within"] = within(list(result["cases"].values()))
        write(options.out, result)

    large = TOO_LARGE if options.device == "cuda" and not options.cases else {}
    for name, (case, limit) in large.items():
        plan = planned(case, rates, options.device)
        ended = runs_out(case, limit * GIB)
        result["too_large"][name] = {
            "limit_gib": limit,
            "needed_gib": plan["needed_gib"],
            "out_of_memory": ended,
        }
        print(f"{name}: needs {plan['needed_gib']} GiB, out of memory: {ended}", flush=True)
        clean(options.device)
        save()
    for name in names:
        if time.perf_counter() - start > options.seconds:
            result["left_out"].append(name)
            continue
        result["cases"][name] = compare(name, (CASES | TINY)[name], rates, options)
        clean(options.device)
        save()
    save()
    print(f"{result['within']}; wrote {options.out} after {time.perf_counter() - start:.0f} s")
