"""Time candidate kernels beside the product's and attention, in one process.

Each candidate is compiled and compared with float64 in a process of its own first; one that fails
or is too inaccurate is reported and left out. Written after every shape:

    candidates: NAME -> error of rows and gradient (relative), or why it is left out
    shapes: NAME -> candidate -> {p20, p50, p80} in ms, forward or backward alone;
            cudnn and flash: forward and forward + backward
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.record import add_arguments, circumstances, write
from benchmarks.relation_kl import LONG, SHAPES, candidates_at, interleaved, operands
from linearard.ops.relation_kl import relation_kl
from linearard.ops.relation_kl import triton as product
from linearard.ops.relation_kl.autograd import Relation
from linearard.ops.relation_kl.visibility import Visibility

CAUSAL = Visibility(causal=True, window=None, cu_seqlens=None, valid=None)
DEADLINE = 230  # seconds, compiling included
TOLERANCE = 2.0  # times the error of the product


def candidates():
    """NAME -> (is it a forward, function)."""
    from benchmarks.designs.triton import overlapped, shared_scores

    found = {
        "product_forward": (True, product.forward),
        "product_backward": (False, product.backward),
    }
    for tile in overlapped.TILES:
        name = "overlapped_" + "x".join(map(str, tile))
        found[name] = (True, lambda *a, tile=tile: overlapped.forward(*a, tile))
    for tile in shared_scores.TILES:
        for tma in (True, False):
            name = f"shared_{'x'.join(map(str, tile))}_{'tma' if tma else 'atomics'}"
            run = lambda *a, tile=tile, tma=tma: shared_scores.backward(*a, tile, tma)  # noqa: E731
            found[name] = (False, run)
    return found


def problem(shape):
    teacher, student = operands(shape)
    relations = [Relation(teacher, None, student.detach(), None)]
    return relations, shape[3] ** -0.5, torch.rand(shape[:3], device="cuda") / shape[2]


def run_backward(run, upstream, stats, relations, scale):
    return run([upstream], stats, relations, CAUSAL, scale, [(True, False)])[0][0]


def errors(name, head_dim):
    """Relative error against float64 on an odd length; compiles the kernel on the way."""
    shape = (1, 3, 1271, head_dim)
    relations, scale, upstream = problem(shape)
    x_t, x_s = relations[0].q_t.double(), relations[0].q_s.double().requires_grad_()
    rows = relation_kl(x_t, x_s, implementation="reference", reduction="none")
    (truth,) = torch.autograd.grad((rows * upstream).sum(), x_s)
    is_forward, run = candidates()[name]
    if is_forward:
        (answer,), stats = run(relations, CAUSAL, scale)
        gradient = run_backward(product.backward, upstream, stats, relations, scale)
        pairs = ((answer, rows), (gradient, truth))
    else:
        _, stats = product.forward(relations, CAUSAL, scale)
        pairs = ((run_backward(run, upstream, stats, relations, scale), truth),)
    return [((x.double() - t).norm() / t.norm()).item() for x, t in pairs]


def measure(shape, names, rounds):
    relations, scale, upstream = problem(shape)
    _, stats = product.forward(relations, CAUSAL, scale)
    runs = {}
    for name, (is_forward, run) in candidates().items():
        if name not in names:
            continue
        if is_forward:
            call = lambda run=run: run(relations, CAUSAL, scale)  # noqa: E731
        else:
            call = lambda run=run: run_backward(run, upstream, stats, relations, scale)  # noqa: E731
        try:
            call()
            torch.cuda.synchronize()
            runs[name] = call
        except Exception as error:
            print(f"{name} does not run at {shape}: {error!r}"[:300], flush=True)
    attention = {
        name: run
        for name, run in candidates_at(shape).items()
        if name.startswith(("cudnn", "flash"))
    }
    return interleaved(runs | attention, rounds, 1)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks designs", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("needs an NVIDIA GPU")
    start = time.monotonic()
    results = {**circumstances(options.commit), "candidates": {}, "shapes": {}}
    pool = ProcessPoolExecutor(
        min(14, os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn"),
        max_tasks_per_child=1,  # a kernel that faults spoils its process only
    )  # fmt: skip
    jobs = {(n, d): pool.submit(errors, n, d) for n in candidates() for d in (128, 64)}
    fit = {64: set(), 128: set()}
    for (name, d), job in jobs.items():
        try:
            found = job.result(timeout=max(1, 120 - (time.monotonic() - start)))
            reference = results["candidates"].get(f"product_backward.d{d}", found)
            # gradients are compared with the product's; its own entry comes before all others
            if not found[-1] <= TOLERANCE * reference[-1]:
                raise ValueError(f"error {found}, product {reference}")
            if len(found) == 2 and not found[0] <= 2e-3:
                raise ValueError(f"error of rows {found[0]}")
            fit[d].add(name)
        except Exception as error:
            found = repr(error)[:300]
        results["candidates"][f"{name}.d{d}"] = found
        print(f"{time.monotonic() - start:5.0f} s  {name}.d{d}: {found}", flush=True)
    hanging = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in hanging:  # they would disturb the timings
        process.kill()
    write(options.out, results)
    for shape in [*SHAPES, LONG]:
        if time.monotonic() - start > DEADLINE - 30:
            print(f"no time left for {shape}", flush=True)
            continue
        name = f"bf16.d{shape[3]}.t{shape[2]}"
        results["shapes"][name] = times = measure(shape, fit[shape[3]], options.rounds)
        print(f"{time.monotonic() - start:5.0f} s  {name}", flush=True)
        for key, value in times.items():
            print(f"    {key:40s} {value['p50']:8.3f} ms", flush=True)
        write(options.out, results)
