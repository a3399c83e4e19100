"""The planner against measured steps: peak memory and time, on shapes it was not calibrated on.

    python -m benchmarks planner --out benchmarks/results/h200/planner.json       a GPU, under two minutes

Models have the exact shape and random weights, built on the device. First `linearard plan --calibrate` runs,
on shapes of its own; then each case is planned, and measured: forward, backward, clipping, AdamW, as the
trainer does them. Then runs that the plan calls too large are run within that much memory, and must end out
of memory. The file it writes:

    device, torch, transformers, python, commit, date      where and when
    calibration    the rates (planning.rates.Rates), and seconds: how long measuring took
    cases: NAME -> model, tokens, batch, rank, recompute, objective; peak_gib and planned_gib, ratio_peak;
        ms {p20, p50, p80}, planned_ms, ratio_ms with the calibrated rates and shipped_ratio_ms with those in
        the package; mfu at the calibrated rate of products; parts: planned ms by kind of work
    too_large: NAME -> limit_gib, needed_gib, out_of_memory: whether it ended so
    within: how many cases are within 10 % of peak and 15 % of time, of how many
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.training_step import MODELS, SELF, timed
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.model import AdapterConfig, RestorableModel
from linearard.planning import Rates, calibrate, shipped_rates
from linearard.planning.duration import batch_duration, optimizer_seconds
from linearard.planning.memory import Setting, step_memory
from linearard.planning.run import CONTEXT_BYTES, FRAGMENTS
from linearard.planning.shapes import ModelShape

GIB = 2**30
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


def real_step(case: Case, device: str) -> Callable[[], None]:
    """Forward, backward, clipping and AdamW of one batch, as the trainer does them."""
    config, adapter = configured(case)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    restorable = RestorableModel(model, None, {"rope_type": "linear", "factor": 8}, adapter)
    restorable.model.to(device)
    module = RestorationModule(restorable, ObjectiveConfig(**case.objective)).train()
    if case.recompute:
        module.gradient_checkpointing_enable()
    parameters = restorable.adapter.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=device == "cuda")
    ids = torch.randint(config.vocab_size, (case.batch, case.tokens), device=device)

    def step() -> None:
        with restorable.adapter.without_casts():
            with torch.autocast(device, torch.bfloat16):
                loss = module(ids)["loss"]
            loss.backward()
        restorable.tap.observe(None)
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def planned(case: Case, rates: Rates, device: str) -> dict[str, Any]:
    config, adapter = configured(case)
    shape, objective = ModelShape.of(config, adapter), ObjectiveConfig(**case.objective)
    native = config.max_position_embeddings
    sizes = (shape, objective, case.tokens, case.batch)
    on_gpu = device == "cuda"
    setting = Setting(fused=on_gpu, recompute=case.recompute)
    memory = step_memory(*sizes, setting, native_window=native)
    spent = batch_duration(
        *sizes, rates, native_window=native, fused=on_gpu, recompute=case.recompute
    )
    seconds = spent.seconds + optimizer_seconds(shape, rates)
    return {
        "planned_gib": round(memory.peak / GIB, 3),
        "needed_gib": round((memory.peak * (1 + FRAGMENTS) + CONTEXT_BYTES) / GIB, 3),
        "moment": memory.moment,
        "memory": {name: round(x / GIB, 3) for name, x in memory.parts.items()},
        "planned_ms": round(1000 * seconds, 2),
        "parts": {name: round(1000 * x, 2) for name, x in spent.parts.items()},
        "waiting_ms": round(1000 * spent.waiting, 2),
        "flops": spent.flops,
    }


def measured(case: Case, device: str, rounds: int) -> dict[str, Any]:
    step = real_step(case, device)
    step()  # makes the optimizer's state, and compiles
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    found: dict[str, Any] = {"ms": timed({"step": step}, rounds, device)["step"]}
    if device == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 3)
    return found


def runs_out(case: Case, limit: float) -> bool:
    """Whether two steps end out of memory within `limit` bytes."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        step = real_step(case, "cuda")
        for _ in range(2):
            step()
        torch.cuda.synchronize()
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks planner",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *TINY])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=105, help="start no case after this long")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", help="default: that of the working tree")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    names = options.cases or list(CASES if options.device == "cuda" else TINY)
    commit = (
        options.commit
        or subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    rates = calibrate(torch.device(options.device))
    result: dict[str, Any] = {
        "device": rates.device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "date": datetime.date.today().isoformat(),
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
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")

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
