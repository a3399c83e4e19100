"""The Hopper kernels on a CPU: the same sources and host code, and an emulator instead of the driver."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from relation_oracle import poisoned_buffers

import linearard.ops.relation_kl.hopper.kernels as hopper
from linearard.ops.relation_kl.autograd import Relation
from linearard.ops.relation_kl.visibility import Visibility

SOURCES = Path(hopper.__file__).parent
EMULATOR = Path(__file__).parent / "emulator"
CAUSAL = Visibility(causal=True)
# without the checks that glibc's longjmp makes of one stack: each emulated thread has its own
_FLAGS = (
    "-std=c++17 -O1 -march=native -ffp-contract=off -w -Wno-psabi -fPIC -shared -U_FORTIFY_SOURCE"
)


class TensorMap(ctypes.Structure):
    """Four dimensions, innermost first; steps in bytes, of all but the innermost."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("sizes", ctypes.c_uint64 * 4),
        ("steps", ctypes.c_uint64 * 3),
        ("box", ctypes.c_uint32 * 4),
        ("rest", ctypes.c_char * 48),
    )


def build(folder: Path, defect=None) -> ctypes.CDLL:
    """The emulator as a library; ``defect`` is (file, text, instead) planted in the kernels."""
    sources = folder / "sources"
    sources.mkdir(parents=True, exist_ok=True)
    for source in (*SOURCES.glob("*.cu"), *SOURCES.glob("*.h")):
        if source.name != "hopper_ptx.h":  # the emulator's takes its place
            shutil.copy(source, sources)
    if defect is not None:
        name, text, instead = defect
        source = (sources / name).read_text()
        assert text in source, text
        (sources / name).write_text(source.replace(text, instead))
    library = folder / "emulator.so"
    command = [
        "g++",
        *_FLAGS.split(),
        f"-I{EMULATOR}",
        f"-I{sources}",
        *["-DDEFECTIVE"] * bool(defect),
    ]
    subprocess.run([*command, str(EMULATOR / "emulator.cpp"), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.emulated_launch.restype = ctypes.c_char_p
    return loaded


def tensor_map(x: torch.Tensor) -> bytes:
    """Of bfloat16 ``x`` [B, H, N, D], in boxes of 64 tokens x 64."""
    b, h, n, d = x.shape
    steps = [2 * x.stride(i) for i in (2, 1, 0)]
    made = TensorMap(base=x.data_ptr())
    made.sizes[:], made.steps[:], made.box[:] = (d, n, h, b), steps, (64, 64, 1, 1)
    return bytes(made)


class Emulated:
    """Takes the place of the driver. Buffers come full of NaN, and of the largest integers."""

    def __init__(self, library, monkeypatch):
        self.library, self.seed, self.resident = library, 0, 2
        monkeypatch.setattr(hopper.driver, "tensor_map", tensor_map)
        monkeypatch.setattr(hopper.driver, "launch", self._launch)

    def _launch(self, source, kernel, blocks, threads, shared, given, device):
        name = kernel.encode()
        assert len(given) == self.library.emulated_size(name), kernel
        # a struct with tensor maps lies at a multiple of 64
        room = ctypes.create_string_buffer(len(given) + 64)
        at = ctypes.addressof(room) + -ctypes.addressof(room) % 64
        ctypes.memmove(at, given, len(given))
        resident = self.resident
        if kernel.startswith("finish"):  # what was added, before it is rounded
            resident = 1
            at_sums, _, a_head, apart, parts, tokens, _ = hopper._FINISH.unpack(given)
            rows = hopper.row_blocks("backward", tokens) * hopper._ROWS["backward"]
            size = rows * int(kernel.rpartition("_")[2])
            places = [
                at_sums + 4 * (head * a_head + part * apart)
                for head in range(blocks * hopper._FINISHED // size)
                for part in range(parts)
            ]
            self.sums = np.stack([(ctypes.c_float * size).from_address(at) for at in places])
        wrong = self.library.emulated_launch(
            name, ctypes.c_void_p(at), blocks, threads, resident, self.seed
        )
        assert wrong == b"", wrong.decode()

    def forward(self, pairs, scale, seed=0, visible=CAUSAL):
        """KL of each of ``pairs``, (teacher, student) or (q_t, k_t, q_s, k_s), and the statistics."""
        self.seed = seed
        with poisoned_buffers():
            rows, (stats,) = hopper.Kernels(True).forward(_relations(pairs), visible, scale)
        return rows, stats

    def backward(
        self,
        pairs,
        stats,
        grads,
        scale,
        ordered,
        seed=0,
        resident=3,
        visible=CAUSAL,
        needs=(True, True),
    ):
        """Gradients of the students, of queries and keys (q, k); None where ``grads`` has None."""
        self.seed, self.resident = seed, resident
        with poisoned_buffers():
            gradients = hopper.Kernels(ordered).backward(
                grads, [stats], _relations(pairs), visible, scale, [needs] * len(pairs)
            )
        return [
            q if len(pair) == 2 else (q, k) for pair, (q, k) in zip(pairs, gradients, strict=True)
        ]


def _relations(pairs):
    return [Relation(*(p if len(p) == 4 else (p[0], None, p[1], None))) for p in pairs]


def hidden_from(tokens, visible):
    """Bool [row, column] of a causal relation."""
    at = np.arange(tokens)
    hidden = at > at[:, None]
    if visible.window is not None:
        hidden |= at <= at[:, None] - visible.window
    if visible.cu_seqlens is not None:
        document = np.searchsorted(visible.cu_seqlens.numpy(), at, "right")
        hidden |= document != document[:, None]
    return hidden


def reference(teacher, student, grad, scale, visible=CAUSAL):
    """Float64: KL, logsumexps, gradient."""
    kl, lse_t, lse_s, dq, dk = attention_reference(
        (teacher, teacher, student, student), grad, scale, visible
    )
    return kl, lse_t, lse_s, dq + dk


def attention_reference(operands, grad, scale, visible):
    """Float64 of (q_t, k_t, q_s, k_s): KL, logsumexps, gradients of q_s and k_s."""
    q_t, k_t, q_s, k_s = (x.double().numpy() for x in operands)
    group = q_t.shape[1] // k_t.shape[1]
    k_t, k_s = (x.repeat(group, 1) for x in (k_t, k_s))
    hidden = hidden_from(q_t.shape[2], visible)

    def log_p(q, k):
        scores = np.where(hidden, -np.inf, q @ k.swapaxes(-1, -2) * scale)
        most = scores.max(-1, keepdims=True)
        lse = most + np.log(np.exp(scores - most).sum(-1, keepdims=True))
        return scores - lse, lse[..., 0]

    (log_t, lse_t), (log_s, lse_s) = log_p(q_t, k_t), log_p(q_s, k_s)
    p_t, p_s = np.exp(log_t), np.exp(log_s)
    with np.errstate(invalid="ignore"):
        kl = np.where(hidden, 0, p_t * (log_t - log_s)).sum(-1)
    g = grad.double().numpy()[..., None]
    w = g * (p_s - p_t)
    dk = w.swapaxes(-1, -2) @ q_s
    dk = dk.reshape(dk.shape[0], -1, group, *dk.shape[2:]).sum(2)
    return kl, lse_t, lse_s, scale * (w @ k_s), scale * dk
