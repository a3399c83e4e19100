"""The Hopper design's kernels on a CPU: the same source, compiled against the emulator's header."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch

SOURCES = Path(__file__).parents[2] / "benchmarks" / "designs" / "hopper_cuda"
EMULATOR = Path(__file__).parent / "emulator"
LOG2_E = 1.4426950408889634


class TensorMap(ctypes.Structure):
    """Four dimensions, innermost first; steps in bytes, of all but the innermost."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("sizes", ctypes.c_uint64 * 4),
        ("steps", ctypes.c_uint64 * 3),
        ("box", ctypes.c_uint32 * 4),
        ("rest", ctypes.c_char * 48),
    )


def build(folder: Path, defect=None, defines=()) -> ctypes.CDLL:
    """The emulator as a library; ``defect`` is (file, text, instead) planted in the kernels."""
    sources = folder / "sources"
    shutil.copytree(SOURCES, sources, dirs_exist_ok=True)
    (sources / "hopper_ptx.h").unlink()  # the emulator's takes its place
    if defect is not None:
        name, text, instead = defect
        source = (sources / name).read_text()
        assert text in source, text
        (sources / name).write_text(source.replace(text, instead))
    library = folder / "emulator.so"
    subprocess.run(
        [
            *(
                "g++",
                "-std=c++17",
                "-O2",
                "-march=native",
                "-ffp-contract=off",
                "-w",
                "-Wno-psabi",
                "-fPIC",
            ),
            *("-shared", f"-I{EMULATOR}", f"-I{sources}", str(EMULATOR / "emulator.cpp")),
            *(f"-D{x}" for x in defines),
            *("-o", str(library)),
        ],
        check=True,
    )
    loaded = ctypes.CDLL(str(library))
    for name in ("forward", "backward", "finish", "copy", "products", "adds"):
        getattr(loaded, f"emulated_{name}").restype = ctypes.c_char_p
    return loaded


def tensor_map(x: torch.Tensor) -> TensorMap:
    """Of bfloat16 ``x`` [B, H, N, D], in boxes of 128 tokens x 64."""
    b, h, n, d = x.shape
    steps = [2 * x.stride(i) for i in (2, 1, 0)]
    made = TensorMap(base=x.data_ptr())
    made.sizes[:], made.steps[:], made.box[:] = (d, n, h, b), steps, (64, 128, 1, 1)
    return made


def pointer(x):
    return None if x is None else ctypes.c_void_p(x.data_ptr())


def check(message: bytes):
    assert message == b"", message.decode()


def forward(library, teacher, student, scale, seed=0, resident=2, together=1):
    """KL [B, H, N] and statistics [4, B * H, N]; buffers come full of NaN."""
    b, h, n, d = teacher.shape
    kl = torch.full((b, h, n), torch.nan)
    stats = torch.full((4, b * h, n), torch.nan)
    maps = tensor_map(teacher), tensor_map(student)
    check(
        library.emulated_forward(
            d, *map(ctypes.byref, maps), pointer(kl), pointer(stats), n, h, b * h, together,
            ctypes.c_float(scale * LOG2_E), resident, seed,
        )
    )  # fmt: skip
    return kl, stats


def backward(library, teacher, student, stats, grad, scale, ordered, seed=0, resident=3, raw=False):
    """Gradient of the student, bfloat16; with ``raw`` what was added in float32, too."""
    b, h, n, d = teacher.shape
    blocks = -(-n // 128)
    sums = torch.zeros(b * h, blocks * 128, d)
    own = torch.full_like(sums, torch.nan) if ordered else None
    turns = torch.zeros(b * h * blocks * 2, dtype=torch.int32) if ordered else None
    out = torch.full((b, h, n, d), torch.nan, dtype=torch.bfloat16)
    maps = tensor_map(teacher), tensor_map(student)
    grad = grad.contiguous()
    check(
        library.emulated_backward(
            d, int(ordered), *map(ctypes.byref, maps), pointer(stats), pointer(grad),
            pointer(sums), pointer(own), pointer(turns), n, h, b * h, 1,
            ctypes.c_float(scale * LOG2_E), resident, seed,
        )
    )  # fmt: skip
    check(
        library.emulated_finish(
            d, pointer(sums), pointer(own), pointer(out), n, b * h, ctypes.c_float(scale)
        )
    )
    return (out, sums) if raw else out


def reference(teacher, student, grad, scale):
    """Float64: KL, logsumexps, gradient; and the size of the gradient's terms."""
    t, s = (x.double().numpy() for x in (teacher, student))
    n = t.shape[2]
    hidden = np.triu(np.ones((n, n), bool), 1)

    def log_p(x):
        scores = np.where(hidden, -np.inf, x @ x.swapaxes(-1, -2) * scale)
        most = scores.max(-1, keepdims=True)
        lse = most + np.log(np.exp(scores - most).sum(-1, keepdims=True))
        return scores - lse, lse[..., 0]

    (log_t, lse_t), (log_s, lse_s) = log_p(t), log_p(s)
    p_t, p_s = np.exp(log_t), np.exp(log_s)
    with np.errstate(invalid="ignore"):
        kl = np.where(hidden, 0, p_t * (log_t - log_s)).sum(-1)
    g = grad.double().numpy()[..., None]
    w = g * (p_s - p_t)
    dx = scale * (w @ s + w.swapaxes(-1, -2) @ s)
    return kl, lse_t, lse_s, dx
