"""Compile what a launcher would launch for a Hopper GPU, on a machine without one, and read it.

Launchers run on CPU tensors: Triton specialises on their addresses and strides as on a GPU, so the
kernel is the one that a GPU would get. Nothing is launched.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

KINDS = (
    "MUFU",
    "FFMA",
    "FMUL",
    "FADD",
    "FMNMX",
    "HGMMA",
    "LDSM",
    "STSM",
    "BAR",
    "SHFL",
    "RED",
    "UBLKRED",
)


class _Hopper:
    """What compiling asks of a driver."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@contextlib.contextmanager
def compiled():
    """A list of (kernel, what ptxas said) that grows by every launch inside."""
    made = []
    driver, before, run = triton.runtime.driver, triton.runtime.driver._active, JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        made.append((kernel, said.getvalue()))
        return kernel

    driver.set_active(_Hopper())
    JITFunction.run = compile_only
    try:
        with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope():
            triton.knobs.nvidia.dump_ptxas_log = True
            triton.knobs.compilation.always_compile = True
            yield made
    finally:
        JITFunction.run = run
        driver._active = before


def report(kernel, said):
    """Registers, spilled bytes, shared memory, serialised products, and the largest loop by kind."""
    registers = re.search(r"Used (\d+) registers", said)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    result = {
        "name": kernel.metadata.name,
        "registers": int(registers[1]),
        "spills": int(spills[1]) + int(spills[2]),
        "shared": kernel.metadata.shared,
        "serialised": "C7510" in said or "serializ" in said,
        "loops": [],
    }
    lines = _disassembly(kernel.asm["cubin"])
    for low, high in _loops(lines):
        ops = [op for at, op, _ in lines if low <= at <= high]
        count = Counter(op.split(".")[0] for op in ops)
        if count["HGMMA"]:
            kinds = {k: count[k] for k in KINDS if count[k]}
            result["loops"].append({"instructions": len(ops), **kinds})
    return result


def _disassembly(cubin):
    """(address, operation, its text) of each instruction."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = (
            subprocess.run([tool, "-c", "-plr", file.name], capture_output=True, text=True).stdout
            or subprocess.run(
                [tool, "-c", file.name], capture_output=True, text=True, check=True
            ).stdout
        )
    lines, labels = [], {}
    for line in text.splitlines():
        if label := re.match(r"^(\.L_x?_?\w+):", line.strip()):
            labels[label[1]] = len(lines)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)(.*)", line):
            lines.append((len(lines), found[1], found[2]))
    return [
        (at, op, labels.get(m[0], -1) if (m := re.findall(r"\.L_x?_?\w+", rest)) else rest)
        for at, op, rest in lines
    ]


def _loops(lines):
    """Backward branches as (first, last), innermost only."""
    found = [
        (to, at) for at, op, to in lines if op == "BRA" and isinstance(to, int) and 0 <= to < at
    ]
    return [
        (a, b)
        for a, b in found
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in found)
    ]
