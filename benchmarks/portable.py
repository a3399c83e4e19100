"""The portable (Triton) kernels of the relation KL beside PyTorch's flash attention on the same shape.

What users of GPUs other than the H100 and H200 run, and a candidate for it (`benchmarks/portable_kernels`).
Times are replays of CUDA graphs, taken in turns; gradients are deterministic and compared with float64 first.

    device, torch, triton, python, cudnn, commit, date     where and when
    rounds                          windows of each candidate behind a median
    shapes: NAME -> dtype, batch, heads, tokens, head_dim, causal, lengths (null: no padding), and
        error, candidate_error, error_plain     of the gradient against float64: Triton's, the candidate's
                                    (mma_error: with sm_80's instructions) and plain PyTorch's, relative,
                                    on min(tokens, 1024) tokens
        ms, candidate_ms, flash_ms  forward + backward; forward_ms and so on likewise
        ratio_flash                 candidate_ms over flash_ms; today_ratio_flash: ms over flash_ms
        mma_ms, ratio_mma           the candidate compiled to the instructions of sm_80, as an A100 runs it,
                                    for shapes of the goals; ratio to the same flash_ms
        ms_128_mib and so on        the candidate with less room for weights
    few: 3 heads of 2048 x 64, as SmolLM2 has keys -> ms (implementation left out, deterministic), triton_ms,
                                    candidate_ms, cudnn_ms, and ratios of ms and candidate_ms to it
    shapes are named DTYPE.dHEAD_DIM.tTOKENS; .padded, .full (rows see all) and .hHEADS follow
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import portable_kernels
from benchmarks.record import add_arguments, circumstances, write
from benchmarks.relation_check import operands
from benchmarks.replays import interleaved, recorded
from linearard.ops.relation_kl import dispatch, relation_kl

BF16, FP16 = torch.bfloat16, torch.float16
#: name -> dtype, shape, options; those of the goals first, measured with sm_80's instructions too.
GOALS = {
    "bf16.d128.t4096": (BF16, (1, 32, 4096, 128), {}),
    "bf16.d128.t16384": (BF16, (1, 32, 16384, 128), {}),
    "bf16.d64.t8192": (BF16, (1, 9, 8192, 64), {}),
    "bf16.d256.t4096": (BF16, (1, 16, 4096, 256), {}),
    "fp16.d128.t4096": (FP16, (1, 32, 4096, 128), {}),
    "bf16.d128.t4096.padded": (BF16, (2, 16, 4096, 128), {"lengths": [4096, 3968]}),
}
OTHERS = {
    **{f"bf16.d{d}.t4096": (BF16, (1, 32, 4096, d), {}) for d in (40, 64, 80, 96, 112, 160, 192)},
    "fp16.d64.t4096": (FP16, (1, 32, 4096, 64), {}),
    "fp16.d256.t4096": (FP16, (1, 16, 4096, 256), {}),
    "bf16.d128.t4095": (BF16, (1, 32, 4095, 128), {}),
    "bf16.d128.t4001": (BF16, (1, 32, 4001, 128), {}),
    "bf16.d128.t1024": (BF16, (4, 32, 1024, 128), {}),
    "bf16.d128.t4096.full": (BF16, (1, 32, 4096, 128), {"causal": False}),
    "bf16.d128.t4096.h8": (BF16, (1, 8, 4096, 128), {}),
    "bf16.d128.t16384.w1024": (BF16, (1, 32, 16384, 128), {"window": 1024}),
}
#: Measured with less room for weights, too: ms_128_mib and so on, where the kernels have 1 GiB.
ROOMS = ("bf16.d128.t4096", "bf16.d128.t16384")
FEW = (1, 3, 2048, 64)
CHECKED_TOKENS = 1024


def formula(teacher, student, causal=True, window=None, lengths=None):
    """The relation KL in plain PyTorch, in the operands' dtype."""
    batch, heads, tokens, head_dim = teacher.shape
    at = torch.arange(tokens, device=teacher.device)
    valid = torch.ones(batch, tokens, dtype=torch.bool, device=teacher.device)
    if lengths is not None:
        valid = at < torch.tensor(lengths, device=teacher.device)[:, None]
    seen = valid[:, None, None, :].expand(batch, 1, tokens, tokens)
    if causal:
        seen = seen & (at <= at[:, None])
    if window is not None:
        seen = seen & (at > at[:, None] - window)
    log_t, log_s = (
        (x @ x.mT * head_dim**-0.5)
        .masked_fill(~seen, torch.finfo(x.dtype).min)
        .log_softmax(-1)
        .masked_fill(~seen, 0)
        for x in (teacher, student)
    )
    rows = torch.where(seen, log_t.exp() * (log_t - log_s), 0).sum(-1)
    return (rows * valid[:, None]).sum() / (valid.sum() * heads)


def checked(name, tiles) -> dict[str, float]:
    """Errors of ours and of plain PyTorch; raises if ours is over twice theirs. Compiles what is timed."""
    dtype, (batch, heads, tokens, head_dim), options = (GOALS | OTHERS)[name]
    if tiles:
        take_tiles(tiles)
    few = min(tokens, CHECKED_TOKENS - tokens % 2)
    options = dict(options)
    if "lengths" in options:
        options["lengths"] = [n * few // tokens for n in options["lengths"]]
    if "window" in options:
        options["window"] = min(options["window"], few // 3)
    teacher, student = operands((batch, min(heads, 4), few, head_dim), dtype)
    exact = student.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(formula(teacher.double(), exact, **options), exact)

    def error(loss, **more):
        (found,) = torch.autograd.grad(loss(teacher, student, **options, **more), student)
        return ((found.double() - truth).norm() / truth.norm()).item()

    found = {"error": error(relation_kl, implementation="triton")}
    with candidate():
        found["candidate_error"] = error(relation_kl, implementation="triton")
        if name in GOALS:
            with sm_80():
                found["mma_error"] = error(relation_kl, implementation="triton")
    worst = max(found.values())
    found["error_plain"] = error(formula)
    if not worst <= 2 * found["error_plain"]:
        raise RuntimeError(f"{name}: {found}: not timed")
    return found


def candidate():
    """A context in which the candidate is what implementation="triton" names."""
    return mock.patch.object(dispatch, "_triton", lambda: portable_kernels)


@contextlib.contextmanager
def sm_80():
    """Compile to the instructions of sm_80 what this GPU then runs."""
    import triton.backends.nvidia.compiler as nvidia

    package = "benchmarks.portable_kernels"
    launch, tiles = (importlib.import_module(f"{package}.{name}") for name in ("launch", "tiles"))
    major, minor = torch.cuda.get_device_capability()
    kept = nvidia.sm_arch_from_capability, launch.options, tiles.capability, launch._variants
    own = kept[0](10 * major + minor)
    nvidia.sm_arch_from_capability = lambda number: own if number == 80 else kept[0](number)
    launch.options = lambda tile: {**kept[1](tile), "arch": "sm80"}
    tiles.capability = lambda x: 80
    launch._variants = {}
    try:
        yield
    finally:
        nvidia.sm_arch_from_capability, launch.options, tiles.capability, launch._variants = kept


def attention(dtype, shape, causal=True):
    """Flash attention, forward and backward, and its forward."""
    q, k, v = (torch.randn(shape, device="cuda").to(dtype).requires_grad_() for _ in range(3))
    upstream = torch.randn_like(q)

    def forward():
        with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            scaled_dot_product_attention(q, k, v, is_causal=causal)

    def both():
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = scaled_dot_product_attention(q, k, v, is_causal=causal)
            torch.autograd.grad(out, (q, k, v), upstream)

    return both, forward


def measure(name, errors, rounds):
    dtype, shape, options = (GOALS | OTHERS)[name]
    result = {
        "dtype": str(dtype).removeprefix("torch."),
        **dict(zip(("batch", "heads", "tokens", "head_dim"), shape, strict=True)),
        "causal": options.get("causal", True),
        "lengths": options.get("lengths"),
        **errors,
    }
    teacher, student = operands(shape, dtype)
    given = dict(options)
    if "lengths" in given:
        given["lengths"] = torch.tensor(given["lengths"], device="cuda")

    def both():
        loss = relation_kl(teacher, student, implementation="triton", **given)
        torch.autograd.grad(loss, student)

    def forward():
        with torch.no_grad():
            relation_kl(teacher, student, implementation="triton", **given)

    flash, flash_forward = attention(dtype, shape, options.get("causal", True))
    found = {
        "ms": both,
        "forward_ms": forward,
        "flash_ms": flash,
        "flash_forward_ms": flash_forward,
    }
    found = {key: recorded(run) for key, run in found.items()}
    with candidate():
        found["candidate_ms"] = recorded(both)
        found["candidate_forward_ms"] = recorded(forward)
        if name in GOALS:
            with sm_80():
                found["mma_ms"] = recorded(both)
        for mib in (128, 256, 512) if name in ROOMS else ():
            backward = importlib.import_module("benchmarks.portable_kernels.backward")
            with mock.patch.object(backward, "_ROOM_BYTES", mib << 20):
                found[f"ms_{mib}_mib"] = recorded(both)
    result |= {key: times["p50"] for key, times in interleaved(found, rounds).items()}
    result["ratio_flash"] = round(result["candidate_ms"] / result["flash_ms"], 4)
    result["today_ratio_flash"] = round(result["ms"] / result["flash_ms"], 4)
    if "mma_ms" in result:
        result["ratio_mma"] = round(result["mma_ms"] / result["flash_ms"], 4)
    return result


def measure_few(rounds):
    teacher, student = operands(FEW)
    q, k, v = (torch.randn(FEW, device="cuda").bfloat16().requires_grad_() for _ in range(3))
    upstream = torch.randn_like(q)

    def cudnn():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            out = scaled_dot_product_attention(q, k, v, is_causal=True)
            torch.autograd.grad(out, (q, k, v), upstream)

    def ours(**options):
        torch.autograd.grad(relation_kl(teacher, student, **options), student)

    candidates = {"ms": ours, "cudnn_ms": cudnn, "triton_ms": lambda: ours(implementation="triton")}
    found = {key: recorded(run) for key, run in candidates.items()}
    with candidate():
        found["candidate_ms"] = recorded(candidates["triton_ms"])
    result = {key: times["p50"] for key, times in interleaved(found, rounds).items()}
    for key in ("", "candidate_"):
        result[f"{key}ratio_cudnn"] = round(result[f"{key}ms"] / result["cudnn_ms"], 4)
    return result


def take_tiles(path) -> None:
    """Measure with the tiles that `triton_variants` found best."""
    package = "benchmarks.portable_kernels"
    tiles, backward = (
        importlib.import_module(f"{package}.{name}") for name in ("tiles", "backward")
    )
    for key, kinds in json.loads(path.read_text())["best"].items():
        if key == "few":
            continue
        for kind, table in tiles.HALF.items():
            if kind in kinds:
                *tile, registers = kinds[kind]
                table[int(key[1:])] = tiles.Tile(*tile, registers or None)
        if key == "d256" and "part" in kinds:
            backward._WIDEST = kinds["part"]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks portable", description=__doc__)
    parser.add_argument("--tiles", type=Path, help="what triton_variants wrote: its best tiles")
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=14, help="that compile and check")
    parser.add_argument("--goals", action="store_true", help="only the shapes of the goals")
    options = parser.parse_args(arguments)
    if options.tiles:
        take_tiles(options.tiles)
    results = {**circumstances(options.commit), "rounds": options.rounds}
    results["few"] = measure_few(options.rounds)
    print(results["few"], flush=True)
    shapes = results["shapes"] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        names = GOALS if options.goals else GOALS | OTHERS
        errors = {name: pool.submit(checked, name, options.tiles) for name in names}
    for name, error in errors.items():
        if error.exception():
            print(f"{name}: {error.exception()}", flush=True)
            continue
        shapes[name] = row = measure(name, error.result(), options.rounds if name in GOALS else 3)
        print(
            f"{name:26} {row['candidate_ms']:8.3f} of {row['flash_ms']:8.3f}: {row['ratio_flash']:.3f}"
            f"  today {row['today_ratio_flash']:.3f}  sm_80 {row.get('ratio_mma', '-')}"
            f"  {[row[k] for k in row if k.endswith('_mib')] or ''}"
            f"  forward {row['candidate_forward_ms']:.3f}, {row['flash_forward_ms']:.3f}"
            f"  error {row['candidate_error']:.1e}, {row['error_plain']:.1e}",
            flush=True,
        )
        write(options.out, results)
        torch.cuda.empty_cache()
