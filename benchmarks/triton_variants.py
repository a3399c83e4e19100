# ruff: noqa: E501 - tables of tiles, and launches of many arguments
"""Pieces of the candidate for the portable kernels in many forms, checked and timed beside flash attention on the same shape.

    python -m benchmarks triton_variants --out FILE.json [--shapes d128 ...] [--only PATTERN]

Every variant is compiled and compared with float64 in processes of their own first; what is off by more than
1e-2 of the gradient is not timed. Names: forward, square (today's backward of two full squares), weights (scores
and weights of all pairs below the diagonal), products (of stored weights with the tokens); weights+row with
columns, any order, in order: other designs (`triton_designs.py`); then rows x columns, warps,
stages, most registers; `mma` where compiled for sm_80 instructions.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.record import add_arguments, circumstances, write
from benchmarks.relation_check import operands, plain
from benchmarks.replays import interleaved, recorded
from linearard.ops.relation_kl import relation_kl

SHAPES = {
    "d128": ((1, 32, 4096, 128), torch.bfloat16),
    "d64": ((1, 9, 8192, 64), torch.bfloat16),
    "d256": ((1, 16, 4096, 256), torch.bfloat16),
    "few": ((1, 3, 2048, 64), torch.bfloat16),
}
SMALL_TOKENS = 1024
_LOG2_E = 1.4426950408889634


#: rows, columns, warps, stages, most registers (0: as many as there are); by head_dim, or "few" heads.
FORWARD = {
    128: [(128, 64, 8, 3, 0), (128, 64, 8, 2, 0), (128, 32, 8, 2, 128), (128, 32, 8, 3, 128), (64, 64, 4, 2, 0),
          (64, 64, 4, 2, 168), (64, 32, 4, 2, 0), (64, 32, 4, 3, 168), (128, 64, 8, 1, 128)],
    64: [(64, 128, 4, 3, 0), (64, 128, 4, 2, 0), (128, 64, 8, 2, 0), (128, 64, 8, 2, 128), (128, 64, 8, 3, 128),
         (64, 64, 4, 2, 168), (64, 64, 4, 3, 0), (64, 64, 4, 3, 128), (64, 32, 4, 3, 128)],
    256: [(64, 64, 4, 2, 0), (64, 32, 4, 2, 0), (64, 16, 4, 2, 168), (64, 16, 4, 3, 168), (128, 32, 8, 2, 0), (128, 16, 8, 2, 0)],
    "few": [(64, 64, 4, 2, 0), (64, 64, 4, 3, 0), (64, 128, 4, 2, 0), (32, 64, 4, 2, 0), (32, 128, 4, 2, 0), (64, 64, 8, 2, 0)],
}  # fmt: skip
SQUARE = {
    128: [(64, 64, 4, 2, 0), (128, 32, 8, 2, 0)],
    64: [(64, 128, 4, 2, 0), (64, 64, 4, 2, 0)],
    256: [(128, 32, 8, 2, 0)],
    "few": [(64, 64, 4, 2, 0)],
}
WEIGHTS = {
    128: [(128, 32, 8, 2, 128), (128, 64, 8, 2, 0), (128, 64, 8, 1, 128), (64, 64, 4, 2, 0), (64, 32, 4, 2, 168),
          (64, 32, 4, 3, 168), (128, 32, 8, 2, 0)],
    64: [(128, 64, 8, 2, 0), (64, 64, 4, 2, 0), (64, 64, 4, 3, 0), (128, 32, 8, 2, 128), (64, 32, 4, 3, 128),
         (64, 32, 4, 2, 0), (128, 64, 8, 1, 0)],
    256: [(64, 32, 4, 2, 0), (64, 16, 4, 2, 168), (128, 32, 8, 2, 0), (128, 16, 8, 2, 0), (64, 64, 4, 2, 0)],
    "few": [(64, 64, 4, 2, 0), (64, 32, 4, 3, 0), (128, 32, 8, 2, 128)],
}  # fmt: skip
#: part, rows, step, warps, stages, most registers.
PRODUCTS = {
    128: [(128, 128, 64, 8, 3, 128), (128, 128, 64, 8, 3, 0), (128, 128, 32, 8, 4, 128), (128, 128, 64, 8, 2, 128),
          (128, 64, 64, 4, 3, 0), (128, 128, 64, 4, 3, 0), (128, 64, 128, 4, 2, 0)],
    64: [(64, 128, 64, 4, 3, 0), (64, 128, 64, 8, 3, 128), (64, 128, 128, 8, 2, 128), (64, 64, 64, 4, 3, 0), (64, 64, 128, 4, 3, 0)],
    256: [(128, 128, 64, 8, 3, 128), (256, 128, 32, 8, 3, 0), (256, 64, 64, 8, 2, 0), (256, 64, 64, 4, 2, 0), (256, 128, 64, 8, 2, 0)],
    "few": [(64, 64, 64, 4, 3, 0), (64, 32, 64, 4, 3, 0), (64, 32, 128, 4, 3, 0), (64, 64, 128, 4, 3, 0), (32, 64, 128, 4, 3, 0)],
}  # fmt: skip


def variants(key):
    dim = "few" if key == "few" else SHAPES[key][0][3]

    def name(rows, columns, warps, stages, registers):
        return f"{rows}x{columns} w{warps} s{stages}" + f" r{registers}" * (registers > 0)

    found = {f"forward {name(*x)}": ("forward", *x) for x in FORWARD[dim]}
    found |= {f"maxima {name(*x)}": ("forward", *x, 0) for x in FORWARD[dim][:4]}
    found |= {f"square {name(*x)}": ("square", *x) for x in SQUARE[dim]}
    found |= {f"weights {name(*x)}": ("weights", *x, 2048) for x in WEIGHTS[dim]}
    found |= {f"products p{p} {name(*x)}": ("products", p, *x) for p, *x in PRODUCTS[dim]}
    if dim == "few":
        x = WEIGHTS[dim][0]
        found |= {f"weights {name(*x)} c{c}": ("weights", *x, c) for c in (256, 512)}
        return found
    some = {
        128: [(64, 64, 4, 2, 0), (128, 32, 8, 2, 0)],
        64: [(64, 64, 4, 2, 0)],
        256: [(64, 32, 8, 2, 0)],
    }[dim]
    for add, kind in enumerate(("weights+row", "any order", "in order")):
        found |= {f"{kind} {name(*x)}": ("design", *x, add) for x in some[: 2 - (add > 0)]}
    found |= {f"columns p{p} {name(*x)}": ("columns", p, *x) for p, *x in PRODUCTS[dim][:2]}
    left = {"forward": 9, "square": 1, "weights": 9, "products": 9} if key == "d128" else {}
    for of, x in list(found.items()):
        kind = of.split()[0]
        if left.get(kind, 0) and " r" not in of:
            found[f"mma {of}"] = x
            left[kind] -= 1
    return found


class Bench:
    """Operands, statistics and workspaces of one shape, and runs of variants over them."""

    def __init__(self, shape, dtype):
        from benchmarks.portable_kernels.forward import forward
        from linearard.ops.relation_kl.autograd import Relation
        from linearard.ops.relation_kl.visibility import Visibility

        self.shape, self.dtype = shape, dtype
        self.t, self.s = operands(shape, dtype)
        self.s = self.s.detach()
        self.batch, self.heads, self.tokens, self.dim = shape
        self.scale = self.dim**-0.5
        self.visible = Visibility(causal=True)
        self.relation = Relation(self.t, None, self.s, None)
        self.rows, (self.stats,) = forward([self.relation], self.visible, self.scale)
        grad = torch.full_like(self.rows[0], 1 / self.rows[0].numel()).view(-1, self.tokens)
        self.grad = grad * self.stats[3]
        self.four = torch.stack((*self.stats[:3], self.grad))
        self.store = None
        self.ada, self.report = False, None

    def room(self):
        if self.store is None:
            n = self.heads * self.tokens
            self.store = torch.zeros(n * self.tokens, dtype=self.dtype, device="cuda")
            self.sums = torch.zeros(n * self.dim, device="cuda")
            self.turns = torch.zeros(n, dtype=torch.int32, device="cuda")
            self.out = torch.empty_like(self.s)
        return self

    def run(self, variant, mma=False):
        kind, *rest = variant
        return getattr(self, kind)(*rest, **({"arch": "sm80"} if mma else {}))

    def go(self, kernel, programs, *arguments, **constants):
        """Launch it; or with ``ada`` compile it for sm_89 and keep what the compiler says."""
        if not self.ada:
            self.spills = kernel[(programs,)](*arguments, **constants).n_spills
            return
        import triton

        made = kernel.warmup(
            *arguments, grid=(programs,), **constants | {"arch": "sm89", "maxnreg": None}
        )
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(made.asm["cubin"])
            file.flush()
            command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
            text = subprocess.run(command, capture_output=True, text=True, check=True)
        usage = re.search(r"REG:(\d+) STACK:(\d+)", text.stdout + text.stderr)
        self.report = {
            "registers": int(usage[1]),
            "stack": int(usage[2]),
            "shared": made.metadata.shared,
        }

    def forward(self, r, c, w, s, registers=0, offsets=1, **extra):
        extra |= {"maxnreg": registers or None}
        from benchmarks.portable_kernels.forward import _forward_kernel as kernel
        from linearard.ops.relation_kl.triton.relations import first_heads, strides
        from linearard.ops.relation_kl.triton.tiles import heads_together

        q_t, q_s = [self.t], [self.s]
        self.go(kernel, self.heads * -(-self.tokens // r),
            tuple(q_t), tuple(q_s), tuple(q_t), tuple(q_s), None, None, None, tuple(self.rows), self.stats,
            *(strides(x) for x in (q_t, q_s, q_t, q_s)), self.tokens, first_heads(q_s), (self.heads,), (self.heads,),
            heads_together(self.s), self.scale * _LOG2_E, DIM=self.dim, WIDTH=self.dim, TAIL=0, ROWS=r, COLUMNS=c, CAUSAL=True,
            HAS_VALID=False, BANDED=False, OFFSETS=bool(offsets), PRECISION="tf32", num_warps=w, num_stages=s, **extra,
        )  # fmt: skip

    def square(self, r, c, w, s, registers=0, **extra):
        extra |= {"maxnreg": registers or None}
        from linearard.ops.relation_kl.triton.backward_kernel import backward_kernel as kernel
        from linearard.ops.relation_kl.triton.relations import first_heads, strides, swept

        q_t, q_s = [self.t], [self.s]
        self.room()
        self.go(kernel, self.heads * -(-self.tokens // r),
            tuple(q_t), tuple(q_s), *swept(q_t, q_s, c, False), (self.out,), self.stats, self.grad, None, None, None,
            *(strides(x) for x in (q_t, q_s, q_t, q_s)), self.tokens, first_heads(q_s), (self.heads,), (self.heads,),
            1, self.scale * _LOG2_E, self.scale, DIM=self.dim, WIDTH=self.dim, ROWS=r, COLUMNS=c, CAUSAL=True,
            ROW=True, COL=True, EVEN=True, HAS_VALID=False, BANDED=False, TMA=False, PRECISION="tf32", num_warps=w,
            num_stages=s, **extra,
        )  # fmt: skip

    def weights(self, r, c, w, s, registers, chunk, **extra):
        from benchmarks.portable_kernels.weights_kernel import weights_kernel
        from linearard.ops.relation_kl.triton.relations import first_heads, strides

        x = [[self.t], [self.s]] * 2
        chunk = min(chunk, self.tokens)
        chunks = self.tokens // chunk
        self.go(weights_kernel, self.heads * (self.tokens // r) * chunks,
            *(tuple(y) for y in x), self.stats, self.grad, None, None, None, self.store, *(strides(y) for y in x),
            self.tokens, self.heads, first_heads(x[1]), (self.heads,), (self.heads,), 0, 0, 0, self.tokens // 128,
            self.tokens // 128, chunks, self.scale * _LOG2_E, DIM=self.dim, WIDTH=self.dim, TAIL=0, ROWS=r, COLUMNS=c, CHUNK=chunk,
            BLOCK=128, CAUSAL=True, SELF=True, HAS_VALID=False, BANDED=False, PRECISION="tf32", num_warps=w,
            num_stages=s, maxnreg=registers or None, **extra,
        )  # fmt: skip

    def products(self, part, rows, step, w, s, registers, **extra):
        from benchmarks.portable_kernels.products_kernel import products_kernel
        from linearard.ops.relation_kl.triton.relations import first_heads, strides

        self.go(products_kernel, self.heads * (self.tokens // rows) * (self.dim // part),
            (self.s,), self.store, None, (self.out,), None, None, strides([self.s]), self.tokens,
            first_heads([self.s]), (self.heads,), (self.heads,), 1, 0, 0, 0, self.tokens // 128, self.tokens // 128, self.scale,
            DIM=self.dim, PART=part, PARTS=self.dim // part, ROWS=rows, STEP=step, BLOCK=128, CAUSAL=True, ROW=True,
            COL=True, SUMS=False, EVEN=True, HAS_VALID=False, BANDED=False, PRECISION="tf32", num_warps=w,
            num_stages=s, maxnreg=registers or None, **extra,
        )  # fmt: skip

    def design(self, r, c, w, s, registers, add, **extra):
        from benchmarks.triton_designs import weights as kernel

        if add:
            self.sums.zero_()
            self.turns.zero_()
        rows_out = self.sums if not add else self.store.view(torch.float32)
        self.go(kernel, self.heads * (self.tokens // r),
            self.t, self.s, self.four, self.store, rows_out, self.turns, self.sums, self.tokens, 0, self.tokens, 8,
            self.scale * _LOG2_E, self.scale, DIM=self.dim, ROWS=r, COLUMNS=c, ROW=True, ADD=add, STORE=not add,
            BOTH=False, num_warps=w, num_stages=s, maxnreg=registers or None, **extra,
        )  # fmt: skip

    def columns(self, part, rows, step, w, s, registers, **extra):
        from benchmarks.triton_designs import columns as kernel

        self.go(kernel, self.heads * (self.tokens // rows) * (self.dim // part),
            self.s, self.store, self.sums, self.out, self.tokens, 0, self.tokens, 8, self.scale, DIM=self.dim,
            PART=part, ROWS=rows, STEP=step, BOTH=False, ADD=True, LAST=True, num_warps=w, num_stages=s,
            maxnreg=registers or None, **extra,
        )  # fmt: skip


def tolerant_arch():
    """Compile what asks for sm_80 instructions for this GPU, too."""
    import triton.backends.nvidia.compiler as nvidia

    usual = nvidia.sm_arch_from_capability
    own = usual(10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1])
    nvidia.sm_arch_from_capability = lambda capability: (
        own if capability == 80 else usual(capability)
    )


def error_of(key, name):
    """Error of what the variant computes, with the simplest others around it, against float64."""
    torch.cuda.init()
    tolerant_arch()
    began = time.time()
    shape, dtype = SHAPES[key]
    batch, _, _, dim = shape
    bench = Bench((batch, 2, SMALL_TOKENS, dim), dtype).room()
    variant, mma = variants(key)[name], name.startswith("mma ")
    teacher, student = bench.t.double(), bench.s.double().requires_grad_()
    (truth,) = torch.autograd.grad(plain(teacher, student), student)
    kind = variant[0]
    first = ("weights", 64, 32, 4, 2, 0, 2048)
    second = (min(dim, 128), 128, 32, 8, 2, 0)
    try:
        if not mma and kind in ("forward", "weights", "products"):
            bench.ada = True
            bench.run(variant)
            bench.ada = False
        if kind == "forward":
            good = bench.rows[0].clone()
            bench.rows[0].fill_(float("nan"))
            bench.run(variant, mma)
            if bench.report:
                bench.report["spills"] = bench.spills
            error = ((bench.rows[0] - good).norm() / good.norm()).item()
            return error, time.time() - began, bench.report
        bench.out.fill_(float("nan"))
        found = bench.out
        if kind == "weights":
            bench.run(variant, mma)
            own = bench.spills
            bench.products(*second)
        elif kind == "products":
            bench.run(first)
            bench.run(variant, mma)
            own = bench.spills
        elif kind == "columns":
            bench.design(64, 32, 4, 2, 0, 0)
            bench.run(variant, mma)
        else:
            bench.run(variant, mma)
            if kind == "design" and not variant[-1]:
                bench.columns(*second)
            elif kind == "design":
                found = bench.sums + bench.store.view(torch.float32)[: bench.sums.numel()]
                found = found.view_as(bench.out) * bench.scale
        torch.cuda.synchronize()
        error = ((found.double() - truth).norm() / truth.norm()).item()
        if bench.report:
            bench.report["spills"] = own
        return error, time.time() - began, bench.report
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}", time.time() - began, bench.report


def best(found, row):
    """The fastest tile of each kernel that also suits an A100 and, but at 256, an RTX 4090.

    Rows, columns, warps, stages, registers.
    """
    tiles = {}
    room = (
        163
        if any(variant[1:2] == (256,) or "p256" in name for name, variant in found.items())
        else 99
    )
    for kind, at in (("forward", 1), ("weights", 1), ("products", 2)):
        times = {
            name: times["p50"]
            for name, times in row.items()
            if name.split()[0] == kind and "p50" in times and times["ada"]
            and times["ada"]["stack"] == 0 == times["ada"]["spills"] and times["ada"]["shared"] <= room * 1024
        }  # fmt: skip
        if times:
            name = min(times, key=times.get)
            tiles[kind] = [*found[name][at : at + 5]]
            if kind == "products":
                tiles["part"] = found[name][1]
    return tiles


def flash(shape, dtype):
    from benchmarks.relation_kl import backends

    q, k, v = (torch.randn(shape, device="cuda", dtype=dtype).requires_grad_() for _ in range(3))
    found = backends(q, k, v)
    return {
        f"{name}{'' if backward else '_forward'}": lambda a=a, b=backward: a(b)
        for name, a in found.items()
        for backward in (True, False)
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks triton_variants", description=__doc__
    )
    add_arguments(parser)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--only", default="", help="regular expression of names")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--patience", type=int, default=150, help="seconds to compile and check")
    options = parser.parse_args(arguments)
    tolerant_arch()
    began = time.time()
    jobs = {}
    results = {**circumstances(options.commit), "shapes": {}, "best": {}}
    with ProcessPoolExecutor(
        options.workers, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        for key in options.shapes:
            for name in variants(key):
                if re.search(options.only, name):
                    jobs[key, name] = pool.submit(error_of, key, name)
        errors = {}
        for job, future in jobs.items():
            try:
                errors[job] = future.result(
                    timeout=max(1.0, began + options.patience - time.time())
                )
            except TimeoutError:  # a kernel that waits for ever
                errors[job] = "did not end", options.patience, None
        for process in list(pool._processes.values()):
            process.terminate()
    print(f"compiled and checked {len(jobs)} in {time.time() - began:.0f} s", flush=True)
    for key in options.shapes:
        shape, dtype = SHAPES[key]
        bench = Bench(shape, dtype).room()
        found = variants(key)
        good, row = {}, {}
        for (k, name), (error, seconds, ada) in errors.items():
            if k != key:
                continue
            row[name] = {"error": error, "seconds": round(seconds, 1), "ada": ada}
            if isinstance(error, float) and error < 1e-2:
                good[name] = recorded(
                    lambda n=name, b=bench, f=found: b.run(f[n], n.startswith("mma "))
                )
        good |= {n: recorded(run) for n, run in flash(shape, dtype).items()}
        teacher, student = operands(shape, dtype)
        for choice in ("hopper", "triton"):
            if choice == "triton" or shape[3] < 256:
                good[choice] = recorded(
                    lambda c=choice, t=teacher, s=student: torch.autograd.grad(
                        relation_kl(t, s, implementation=c), s
                    )
                )
        for name, times in interleaved(good, options.rounds).items():
            row.setdefault(name, {}).update(times)
        results["shapes"][key] = row
        results["best"][key] = best(found, row)
        write(options.out, results)
        print(key, f"{time.time() - began:.0f} s")
        for name, found_ in row.items():
            error = found_.get("error", "")
            error = f"{error:.1e}" if isinstance(error, float) else str(error)[:90]
            ada = found_.get("ada") or {}
            fits = (
                f"sm_89 {ada['registers']}+{ada['stack']} {ada['shared'] >> 10}K, spills {ada.get('spills')}"
                if ada
                else ""
            )
            print(f"  {found_.get('p50', '-'):>8} {name:40} {error} {fits}", flush=True)
        print("  best", results["best"][key], flush=True)
        good.clear()
        torch.cuda.empty_cache()
