"""Compiles the kernels with NVRTC (or nvcc), keeps the result in the user's cache, launches them."""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import os
import shutil
import site
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCES = Path(__file__).parent
ARCHITECTURE = "sm_90a"
defines: tuple[str, ...] = ()  # for what is launched from now on, such as "WITHOUT_TURNS=1"
_BFLOAT16, _SWIZZLE_128, _PROMOTE_256 = 9, 3, 3  # of cuTensorMapEncodeTiled
_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class LaunchError(RuntimeError):
    """What CUDA said, and of what."""


@cache
def _nvrtc() -> ctypes.CDLL | None:
    """NVRTC as torch's wheels bring it, or as the loader finds it; None without."""
    major = (torch.version.cuda or "0").split(".")[0]
    found = [
        str(path)
        for root in (*site.getsitepackages(), str(Path(torch.__file__).parents[1]))
        for path in sorted(Path(root).glob("nvidia/*/lib/libnvrtc.so.*"), reverse=True)
        if "alt" not in path.name
    ]
    for name in (*found, f"libnvrtc.so.{major}", "libnvrtc.so", ctypes.util.find_library("nvrtc")):
        try:
            if name:
                if "/" in name:  # NVRTC asks the loader for these by name; it has them then
                    for path in Path(name).parent.glob("libnvrtc-builtins.so.*"):
                        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _with_nvrtc(nvrtc, name: str, options: tuple[str, ...] = ()) -> bytes:
    def ask(call, *arguments):
        error = call(*arguments)
        if error:
            nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise LaunchError(f"NVRTC: {nvrtc.nvrtcGetErrorString(error).decode()}")

    def text(size_of, content_of):
        size = ctypes.c_size_t()
        ask(size_of, program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        ask(content_of, program, content)
        return content.raw

    headers = sorted(SOURCES.glob("*.h"))
    names = (ctypes.c_char_p * len(headers))(*(h.name.encode() for h in headers))
    texts = (ctypes.c_char_p * len(headers))(*(h.read_bytes() for h in headers))
    program = ctypes.c_void_p()
    source = (SOURCES / name).read_bytes()
    ask(
        nvrtc.nvrtcCreateProgram,
        ctypes.byref(program), source, name.encode(), len(headers), texts, names,
    )  # fmt: skip
    flags = (
        f"--gpu-architecture={ARCHITECTURE}".encode(),
        b"--std=c++17",
        *(f"-D{x}".encode() for x in options),
    )
    error = nvrtc.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags))
    log = text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
    if error:
        raise LaunchError(f"NVRTC does not compile {name}:\n{log.decode(errors='replace')}")
    return text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)


def _with_nvcc(name: str, options: tuple[str, ...] = ()) -> bytes:
    target = ARCHITECTURE.removeprefix("sm_")
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        command = ["nvcc", "-std=c++17", f"-gencode=arch=compute_{target},code=sm_{target}"]
        command += [
            f"-I{SOURCES}",
            *(f"-D{x}" for x in options),
            "-cubin",
            "-o",
            str(cubin),
            str(SOURCES / name),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise LaunchError(f"nvcc does not compile {name}:\n{done.stderr}")
        return cubin.read_bytes()


def compiled(name: str, options: tuple[str, ...] = ()) -> bytes:
    """Machine code of ``name``, from the cache where source and compiler are the same."""
    nvrtc = _nvrtc()
    if nvrtc is not None:
        major, minor = ctypes.c_int(), ctypes.c_int()
        nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        compiler = f"nvrtc {major.value}.{minor.value}"
    elif shutil.which("nvcc"):
        compiler = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    else:
        raise LaunchError("neither NVRTC (pip install nvidia-cuda-nvrtc) nor nvcc was found")
    key = hashlib.sha256(f"{compiler} {ARCHITECTURE} {options} ".encode())
    for source in (*sorted(SOURCES.glob("*.h")), SOURCES / name):
        key.update(source.read_bytes())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = root / "linearard" / "hopper_cuda" / f"{Path(name).stem}-{key.hexdigest()[:24]}.cubin"
    if not kept.exists():
        with_nvrtc = nvrtc is not None
        code = _with_nvrtc(nvrtc, name, options) if with_nvrtc else _with_nvcc(name, options)
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_bytes(code)
        part.replace(kept)
    return kept.read_bytes()


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
def _function(source: str, name: str, shared: int, device: int, options: tuple[str, ...]):
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _ask(source, "cuModuleLoadData", ctypes.byref(module), compiled(source, options))
    _ask(name, "cuModuleGetFunction", ctypes.byref(function), module, name.encode())
    if shared:
        _ask(name, "cuFuncSetAttribute", function, _DYNAMIC_SHARED, shared)
    return function


class TensorMap:
    """How the copy engine reads bfloat16 [B, H, N, D] in boxes of 128 tokens x 64."""

    def __init__(self, x: torch.Tensor):
        steps = [x.stride(i) * 2 if x.shape[i] > 1 else 16 for i in (2, 1, 0)]
        if x.dtype != torch.bfloat16 or x.stride(-1) != 1 or x.data_ptr() % 16:
            raise LaunchError("operands are bfloat16, contiguous along head_dim, 16-byte aligned")
        if any(step % 16 or step <= 0 for step in steps):
            raise LaunchError(f"strides are multiples of 8 elements, not {x.stride()}")
        self._room = ctypes.create_string_buffer(128 + 64)
        self.at = ctypes.addressof(self._room) + -ctypes.addressof(self._room) % 64
        b, h, n, d = x.shape
        _ask(
            "tensor map", "cuTensorMapEncodeTiled",
            ctypes.c_void_p(self.at), _BFLOAT16, 4, ctypes.c_void_p(x.data_ptr()),
            (ctypes.c_uint64 * 4)(d, n, h, b), (ctypes.c_uint64 * 3)(*steps),
            (ctypes.c_uint32 * 4)(64, 128, 1, 1), (ctypes.c_uint32 * 4)(1, 1, 1, 1),
            0, _SWIZZLE_128, _PROMOTE_256, 0,
        )  # fmt: skip


def launch(source, name, grid, threads, shared, arguments) -> None:
    """On torch's current stream. Arguments: TensorMap, Tensor or None (a pointer), int, float."""
    device = torch.cuda.current_device()
    values = []
    for x in arguments:
        if isinstance(x, TensorMap):
            values.append(x)
        elif isinstance(x, torch.Tensor) or x is None:
            values.append(ctypes.c_void_p(0 if x is None else x.data_ptr()))
        else:
            values.append(ctypes.c_float(x) if isinstance(x, float) else ctypes.c_int(x))
    pointers = (ctypes.c_void_p * len(values))(
        *(x.at if isinstance(x, TensorMap) else ctypes.addressof(x) for x in values)
    )
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    _ask(
        name, "cuLaunchKernel", _function(source, name, shared, device, defines),
        grid, 1, 1, threads, 1, 1, shared, stream, pointers, None,
    )  # fmt: skip
