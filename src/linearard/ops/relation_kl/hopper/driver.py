"""The CUDA driver: loads kernels, describes tensors to the copy engine, launches.

Through ctypes, so that nothing is compiled when the package is installed.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache

import torch
from torch import Tensor

from linearard.ops.relation_kl.hopper.compiler import compiled

_BFLOAT16, _SWIZZLE_128, _PROMOTE_256 = 9, 3, 3  # of cuTensorMapEncodeTiled
_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_MAP_BYTES = 128


class LaunchError(RuntimeError):
    """What CUDA said, and of what."""


@cache
def _driver() -> ctypes.CDLL:
    torch.cuda.init()
    return ctypes.CDLL("libcuda.so.1")


def _ask(what: str, call: str, *arguments) -> None:
    error = getattr(_driver(), call)(*arguments)
    if error:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(error, ctypes.byref(text))
        raise LaunchError(f"{what}: {call}: {(text.value or b'unknown').decode()} ({error})")


@cache
def _function(source: str, name: str, shared: int, device: int) -> ctypes.c_void_p:
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _ask(source, "cuModuleLoadData", ctypes.byref(module), compiled(source))
    _ask(name, "cuModuleGetFunction", ctypes.byref(function), module, name.encode())
    if shared:
        _ask(name, "cuFuncSetAttribute", function, _DYNAMIC_SHARED, shared)
    return function


def readable(x: Tensor) -> bool:
    """Whether the copy engine can read ``x`` [B, H, N, D] where it lies."""
    *steps, last = x.stride()
    if last != 1 or x.data_ptr() % 16:
        return False
    sizes = x.shape[:3]
    return all(n == 1 or (step > 0 and step % 8 == 0) for n, step in zip(sizes, steps, strict=True))


def tensor_map(x: Tensor) -> bytes:
    """How the copy engine reads bfloat16 ``x`` [B, H, N, D]: in boxes of 64 tokens x 64 numbers."""
    shape, (b, h, n, _) = tuple(x.shape), x.stride()
    steps = [2 * step if size > 1 else 16 for size, step in zip(shape[:3], (b, h, n), strict=True)]
    return _encoded(x.data_ptr(), shape, tuple(steps[::-1]))


@lru_cache(maxsize=4096)  # an allocator gives the same addresses again and again
def _encoded(at: int, shape: tuple[int, ...], steps: tuple[int, ...]) -> bytes:
    b, h, n, d = shape
    room = ctypes.create_string_buffer(_MAP_BYTES + 64)
    aligned = ctypes.addressof(room) + -ctypes.addressof(room) % 64
    _ask(
        "a tensor map", "cuTensorMapEncodeTiled",
        ctypes.c_void_p(aligned), _BFLOAT16, 4, ctypes.c_void_p(at),
        (ctypes.c_uint64 * 4)(d, n, h, b), (ctypes.c_uint64 * 3)(*steps),
        (ctypes.c_uint32 * 4)(64, 64, 1, 1), (ctypes.c_uint32 * 4)(1, 1, 1, 1),
        0, _SWIZZLE_128, _PROMOTE_256, 0,
    )  # fmt: skip
    return ctypes.string_at(aligned, _MAP_BYTES)


def launch(
    source: str, kernel: str, blocks: int, threads: int, shared: int, given: bytes, device: int
) -> None:
    """Launch ``kernel`` of ``source`` on torch's stream of the current device, number ``device``.

    ``given``: the struct that the kernel takes; ``shared``: bytes of dynamic shared memory.
    """
    function = _function(source, kernel, shared, device)
    # as a parameter, not as the buffer of all: there the compiler's alignment would have to be known
    parameters = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.c_char_p(given), ctypes.c_void_p))
    stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
    _ask(
        kernel, "cuLaunchKernel", function, blocks, 1, 1, threads, 1, 1, shared, stream, parameters, None
    )  # fmt: skip
