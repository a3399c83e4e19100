"""Time that a call of the relation KL, forward and backward, keeps the host busy: microseconds.

Operands are so small that the device is done before the host; beside it an autograd function that only
allocates, which is what torch itself takes, and attention called as a layer does.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.record import add_arguments, circumstances, quantiles, write
from benchmarks.relation_check import attention_operands, operands
from linearard.ops.relation_kl import attention_kl, layer_relation_kl, relation_kl

CALLS, BATCHES = 20, 15


class Nothing(torch.autograd.Function):
    """Allocates what a relation does: KL and statistics forward, the gradient backward."""

    @staticmethod
    def forward(ctx, teacher, student):
        ctx.save_for_backward(teacher, student)
        rows = student.new_empty(student.shape[:3], dtype=torch.float32)
        rows.new_empty(4, *rows.shape)
        return rows

    @staticmethod
    def backward(ctx, grad):
        return None, torch.empty_like(ctx.saved_tensors[1])


def host_us(run) -> dict[str, float]:
    for _ in range(5):
        run()
    torch.cuda.synchronize()
    times = []
    for _ in range(BATCHES):
        began = time.perf_counter()
        for _ in range(CALLS):
            run()
        times.append((time.perf_counter() - began) / CALLS * 1e6)
        torch.cuda.synchronize()
    return quantiles(times, 1)


def candidates():
    teacher, student = operands((1, 3, 256, 64))
    layer = {name: operands((1, n, 256, 64)) for name, n in zip("qkv", (9, 3, 3), strict=True)}
    given = attention_operands(1, 9, 3, 256, 64)
    q, k, v = (
        torch.randn(1, 3, 256, 64, device="cuda").bfloat16().requires_grad_() for _ in range(3)
    )
    upstream = torch.randn_like(q)

    def relation(**options):
        torch.autograd.grad(relation_kl(teacher, student, **options), student)

    def forward(**options):
        with torch.no_grad():
            relation_kl(teacher, student, **options)

    def together(**options):
        losses = layer_relation_kl(layer, **options)
        torch.autograd.grad(sum(losses.values()), [x for _, x in layer.values()])

    found = {
        "nothing": lambda: torch.autograd.grad(Nothing.apply(teacher, student).mean(), student),
        "attention": lambda: torch.autograd.grad(
            scaled_dot_product_attention(q, k, v, is_causal=True), (q, k, v), upstream
        ),
    }
    for name, options in (
        ("", {}),
        *((f" {x}", {"implementation": x}) for x in ("hopper", "triton")),
    ):
        found |= {
            f"relation{name}": lambda o=options: relation(**o),
            f"relation, forward{name}": lambda o=options: forward(**o),
            f"layer of three{name}": lambda o=options: together(**o),
            f"attention_kl{name}": lambda o=options: torch.autograd.grad(
                attention_kl(*given, **o), given[2:]
            ),
        }
    return found


def profile(run, calls=200) -> str:
    kept = cProfile.Profile()
    kept.enable()
    for _ in range(calls):
        run()
    kept.disable()
    text = io.StringIO()
    pstats.Stats(kept, stream=text).sort_stats("tottime").print_stats(40)
    return text.getvalue()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks host_time", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    options = parser.parse_args(arguments)
    found = candidates()
    results = {**circumstances(options.commit), "us": {n: host_us(run) for n, run in found.items()}}
    for name, times in results["us"].items():
        print(f"{times['p50']:9.1f} us  {name}", flush=True)
    write(options.out, results)
    if options.profile:
        for name in ("relation hopper", "relation triton"):
            print(name, profile(found[name]))
