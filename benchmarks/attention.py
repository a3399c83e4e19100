"""Attention of the layers that people bring, beside flash attention at the same work.

    python -m benchmarks attention --out benchmarks/results/h200/attention.json      a GPU, under a minute

Each case is the attention of one layer as `linearard.capture` runs it, forward and backward in bfloat16, on
65,536 tokens. Beside it, in turns in the same run: PyTorch's flash attention with as many heads on as many
tokens and pairs of tokens: for a sliding window of w tokens, causal sequences of 2 w. Output and gradients
are compared with float32's on a short sequence first. The file:

    device, torch, transformers, python, commit, date      where and when
    cases: NAME -> heads, kv_heads, head_dim, window, tokens; ms, flash_ms {p20, p50, p80}; ratio; tflops;
        gib, flash_gib: memory held at most beside the operands; error, flash_error: of output and gradients,
        relative to float32
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.record import add_arguments, circumstances, in_turns, quantiles, write
from linearard.capture.sdpa import causal_attention
from linearard.counting import visible_pairs

GIB = 2**30


@dataclass(frozen=True)
class Case:
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None


CASES = {
    "gemma3-270m, window": Case(4, 1, 256, 512),
    "gemma3-270m, full": Case(4, 1, 256),
    "gemma3-4b, window": Case(8, 4, 256, 1024),
    "mistral-7b": Case(32, 8, 128, 4096),
    "phi3-mini": Case(32, 32, 96, 2047),
    "qwen2.5-0.5b": Case(14, 2, 64),
}


def operands(case: Case, batch: int, tokens: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    make = torch.Generator(device).manual_seed(0)
    heads = (case.heads, case.kv_heads, case.kv_heads, case.heads)
    shapes = [(batch, tokens, count, case.head_dim) for count in heads]
    drawn = [torch.randn(s, device=device, generator=make).to(dtype) for s in shapes]
    return [x.transpose(1, 2).requires_grad_() for x in drawn[:3]] + [drawn[3]]


def ours(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return causal_attention(q, k, v, case.head_dim**-0.5, window=case.window)


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        output = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=grouped
        )
    return output.transpose(1, 2)


def exact(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    group, tokens = q.shape[1] // k.shape[1], q.shape[2]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    rows = torch.arange(tokens, device=q.device)
    distance = rows[:, None] - rows
    seen = (distance >= 0) & (distance < (case.window or tokens))
    scores = (q @ k.mT * case.head_dim**-0.5).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def differentiated(
    run: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, slope: Tensor
) -> list:
    output = run(q, k, v)
    return [output, *torch.autograd.grad(output, (q, k, v), slope)]


def error(case: Case, run: Callable[..., Tensor], device: str, windowed: bool) -> float:
    """Largest relative distance to float32 of the output and the three gradients."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokens = 1280 if device == "cuda" else 160
    few = operands(case, 1, tokens, dtype, device)
    precise = [x.detach().float().requires_grad_() for x in few]
    case = case if windowed else Case(case.heads, case.kv_heads, case.head_dim)
    wanted = differentiated(lambda *x: exact(case, *x), *precise)
    got = differentiated(run, *few)
    pairs = zip(got, wanted, strict=True)
    return round(
        max(float((a.detach().float() - b.detach()).norm() / b.detach().norm()) for a, b in pairs),
        5,
    )


def measured(case: Case, tokens: int, rounds: int, device: str) -> dict[str, Any]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    short = tokens if case.window is None else min(2 * case.window, tokens)
    runs: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
        "ms": (lambda *x: ours(case, *x), operands(case, 1, tokens, dtype, device)),
        "flash_ms": (flash, operands(case, tokens // short, short, dtype, device)),
    }
    row: dict[str, Any] = {**vars(case), "tokens": tokens}
    row["error"] = error(case, runs["ms"][0], device, True)
    if device == "cpu":
        runs.pop("flash_ms")
    else:
        row["flash_error"] = error(case, flash, device, False)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, (run, given) in runs.items():  # compiles, and shows the memory
        if device == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        differentiated(run, *given)
        if device == "cuda":
            peak = torch.cuda.max_memory_allocated() - before
            row[name.replace("ms", "gib")] = round(peak / GIB, 3)
    for name in in_turns(runs, rounds):
        run, given = runs[name]
        _wait(device)
        start = time.perf_counter()
        differentiated(run, *given)
        _wait(device)
        times[name].append(1000 * (time.perf_counter() - start))
    row |= {name: quantiles(spent) for name, spent in times.items()}
    pairs = case.heads * visible_pairs(tokens, case.window)
    row["tflops"] = round(7 * 2 * pairs * case.head_dim / row["ms"]["p50"] / 1e9, 1)
    if "flash_ms" in row:
        row["ratio"] = round(row["ms"]["p50"] / row["flash_ms"]["p50"], 3)
    return row


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {**circumstances(options.commit, options.device), "cases": {}}
    for name in options.cases:
        row = measured(CASES[name], options.tokens, options.rounds, options.device)
        result["cases"][name] = row
        print(
            f"{name}: {row['ms']['p50']:.2f} ms, ratio to flash {row.get('ratio')}, {row['tflops']} TFLOP/s, "
            f"{row.get('gib')} GiB (flash {row.get('flash_gib')}), error {row['error']}",
            flush=True,
        )
        write(options.out, result)
        if options.device == "cuda":
            torch.cuda.empty_cache()
