"""The H200's rates that ship with the planner, from result files: `python -m benchmarks planner_rates`.

--out FILE    default: the file in the package, src/linearard/planning/h200.json

gemm, gemm_half        two profiles (training_step_*.json): time in matrix products against their work
bandwidth              the same profiles: bytes of elementwise passes over the time of their kernels
attention, relation    relation_kl.json: cuDNN's attention, and the relation kernels
host                   steps of SmolLM2, which wait for the host: least squares over the objectives
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from benchmarks.training_step import CASES, MODELS
from linearard.counting.products import step_products, visible_pairs
from linearard.counting.shapes import ModelShape
from linearard.distill import ObjectiveConfig
from linearard.model import AdapterConfig
from linearard.planning.rates import Rates, Speed
from linearard.planning.traffic import optimizer_traffic, step_traffic

RESULTS = Path(__file__).parent / "results" / "h200"
SHIPPED = Path(__file__).parents[1] / "src" / "linearard" / "planning" / "h200.json"
PROFILES = ("training_step_llama2_7b.json", "training_step_smollm2.json")


def kernel_seconds(profile: dict[str, Any]) -> dict[str, float]:
    """Seconds of a profiled step by kind of kernel: gemm, attention, relation, elementwise."""
    found = dict.fromkeys(("gemm", "attention", "relation", "elementwise"), 0.0)
    for kernel in profile["kernels"]:
        name = kernel["name"]
        if name.startswith("Optimizer"):  # a mark around kernels that are listed themselves
            continue
        kind = "elementwise"
        if "nvjet" in name or "gemm" in name:
            kind = "gemm"
        elif "flash" in name or "cudnn" in name:
            kind = "attention"
        elif name.endswith(("backward_kernel", "forward_kernel")):
            kind = "relation"
        found[kind] += kernel["ms"] / 1000
    return found


def model_shape(result: dict[str, Any]) -> ModelShape:
    """The model of a result of `training_step`."""
    config = transformers.LlamaConfig(**MODELS[result["model"]])
    return ModelShape.of(config, AdapterConfig(r=result["rank"], dropout=0.0))


def fitted(results: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Rate and half-size of products, and bandwidth."""
    work, times, passed, passing = [], [], 0.0, 0.0
    for result in results:
        shape, profile = model_shape(result), result["profile"]
        objective = ObjectiveConfig(**CASES[profile["case"]])
        sizes = (shape, objective, result["tokens"], result["batch"])
        native = MODELS[result["model"]]["max_position_embeddings"]
        products = [
            product
            for product in step_products(*sizes, native_window=native)
            if product.kind in ("gemm", "lora", "head")
        ]
        sides = [min(p.rows, p.inner, p.columns) for p in products]
        slower = sum(p.flops / side for p, side in zip(products, sides, strict=True))
        work.append([sum(p.flops for p in products), slower])
        seconds = kernel_seconds(profile)
        times.append(seconds["gemm"])
        traffic = step_traffic(*sizes, native_window=native, fused=False)
        passed += sum(traffic.values()) + optimizer_traffic(shape)
        passing += seconds["elementwise"]
    per_flop, per_side = np.linalg.solve(np.array(work, float), np.array(times))
    return 1 / per_flop, per_side / per_flop, passed / passing


def host(result: dict[str, Any]) -> dict[str, float]:
    """Seconds a layer that the host needs, from steps in which the device waits for it."""
    layers, rows, times = MODELS[result["model"]]["num_hidden_layers"], [], []
    for name, case in result["cases"].items():
        objective = ObjectiveConfig(**CASES[name])
        if objective.inputs == "own":
            relations = len(objective.active_relations)
            rows += [[objective.needs_teacher, 1, relations], [1, 0, 0]]
            times += [case["ms"]["p50"], case["teacher_ms"]["p50"]]
    found, *_ = np.linalg.lstsq(layers * np.array(rows, float), np.array(times) / 1000)
    return dict(zip(("teacher", "student", "relation"), map(float, found), strict=True))


def speeds(result: dict[str, Any], forward: str, both: str, again: int) -> tuple[Speed, ...]:
    """Operations a second: two products forward; backward four, or with the scores `again`."""
    found = []
    for row in result["shapes"].values():
        if row["dtype"] != "bfloat16" or forward not in row:
            continue
        pairs = row["batch"] * row["heads"] * visible_pairs(row["tokens"], None) * row["head_dim"]
        ahead, total = row[forward]["p50"] / 1000, row[both]["p50"] / 1000
        found.append(
            Speed(
                row["head_dim"],
                row["tokens"],
                forward=round(2 * 2 * pairs / ahead),
                backward=round(2 * again * pairs / (total - ahead)),
            )
        )
    return tuple(found)


def rates() -> Rates:
    """All of them."""
    results = [json.loads((RESULTS / name).read_text()) for name in PROFILES]
    kernels = json.loads((RESULTS / "relation_kl.json").read_text())
    gemm, half, bandwidth = fitted(results)
    return Rates(
        device=kernels["device"],
        versions={name: kernels[name] for name in ("torch", "triton")},
        source=f"benchmarks/results/h200: {', '.join(PROFILES)}, relation_kl.json",
        gemm=float(f"{gemm:.4g}"),
        gemm_half=round(half, 1),
        attention=speeds(kernels, "cudnn_forward", "cudnn", 5),
        relation=speeds(kernels, "forward", "forward_backward", 4),
        bandwidth=float(f"{bandwidth:.4g}"),
        host={name: float(f"{seconds:.3g}") for name, seconds in host(results[1]).items()},
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks planner_rates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=SHIPPED)
    options = parser.parse_args(arguments)
    options.out.write_text(json.dumps(rates().to_dict(), indent=1) + "\n")
    print(f"wrote {options.out}")
