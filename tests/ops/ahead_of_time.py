"""Kernels compiled as a GPU of any architecture would have them, without a GPU."""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget

from benchmarks.portable_kernels.launch import options
from linearard.ops.relation_kl.autograd import Relation

PACKAGE = "benchmarks.portable_kernels"


class Report(NamedTuple):
    """What the compiler says of a kernel.

    Attributes:
        name: of the kernel.
        registers: of a thread.
        stack: bytes of a thread in memory, spilled registers among them.
        shared: bytes of shared memory of a program.
    """

    name: str
    registers: int
    stack: int
    shared: int


class _Driver:
    """What Triton asks of a driver before it compiles; each architecture is a device."""

    def __init__(self, architecture: int):
        self.architecture = architecture

    def get_current_device(self):
        return self.architecture

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.architecture, 32)


def reports(architecture: int, monkeypatch, like, visible, kv_heads=None) -> list[Report]:
    """Of the kernels that a forward and a backward launch for operands like ``like`` [B, H, N, D]."""
    monkeypatch.setattr(triton.runtime.driver, "_active", _Driver(architecture), raising=False)
    monkeypatch.setattr(
        importlib.import_module(f"{PACKAGE}.tiles"), "capability", lambda x: architecture
    )
    found = []

    def compiled(kernel, programs, arguments, constants, tile):
        made = kernel.warmup(*arguments, **constants, grid=(programs,), **options(tile))
        found.append(_report(kernel.__name__, made))

    modules = [importlib.import_module(f"{PACKAGE}.{name}") for name in ("forward", "backward")]
    for module in modules:
        monkeypatch.setattr(module, "launch", compiled)
    keys = like if kv_heads is None else like[:, :kv_heads].clone()
    relation = (
        Relation(like, None, like, None) if kv_heads is None else Relation(like, keys, like, keys)
    )
    rows, stats = modules[0].forward([relation], visible, 1.0)
    modules[1].backward(rows, stats, [relation], visible, 1.0, [(True, kv_heads is not None)])
    return found


def _report(name: str, made) -> Report:
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [tool, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True)
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text.stdout + text.stderr)
    return Report(name, int(usage[1]), int(usage[2]), made.metadata.shared)
