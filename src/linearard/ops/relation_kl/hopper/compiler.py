"""CUDA sources to machine code, with the NVRTC that torch brings, kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import site
from functools import cache
from pathlib import Path

import torch

from linearard.storage import cache_folder, replacing

_SOURCES = Path(__file__).parent
_FLAGS = (b"--gpu-architecture=sm_90a", b"--std=c++17")


class CompileError(RuntimeError):
    """What NVRTC said."""


@cache
def nvrtc() -> ctypes.CDLL | None:
    """The runtime compiler of torch's wheels, or the one that the loader finds; None without."""
    major = (torch.version.cuda or "0").split(".")[0]
    roots = {*site.getsitepackages(), str(Path(torch.__file__).parents[1])}
    wheels = [
        path
        for root in sorted(roots)
        for path in sorted(Path(root).glob("nvidia/*/lib/libnvrtc.so.*"), reverse=True)
        if "alt" not in path.name
    ]
    for path in wheels:
        try:
            # NVRTC asks the loader for these by name; it has them then
            for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    for name in (f"libnvrtc.so.{major}", "libnvrtc.so", ctypes.util.find_library("nvrtc")):
        try:
            if name:
                return ctypes.CDLL(name)
        except OSError:
            continue
    return None


@cache
def compiled(name: str) -> bytes:
    """Machine code of the source ``name``; from the cache where sources and compiler are the same.

    Raises:
        CompileError: NVRTC does not compile it.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    key = hashlib.sha256(f"nvrtc {major.value}.{minor.value} {_FLAGS}".encode())
    for source in (*sorted(_SOURCES.glob("*.h")), _SOURCES / name):
        key.update(source.read_bytes())
    kept = cache_folder("kernels") / f"{Path(name).stem}-{key.hexdigest()[:24]}.cubin"
    if kept.exists():
        return kept.read_bytes()
    code = _compile(name)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as partial:
            partial.write_bytes(code)
    except OSError:  # a home that cannot be written costs seconds a process, not the run
        pass
    return code


def _compile(name: str) -> bytes:
    library = nvrtc()
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    program = ctypes.c_void_p()

    def ask(call, *arguments):
        if error := call(*arguments):
            raise CompileError(f"NVRTC: {library.nvrtcGetErrorString(error).decode()}")

    def answer(size_of, content_of) -> bytes:
        size = ctypes.c_size_t()
        ask(size_of, program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        ask(content_of, program, content)
        return content.raw

    headers = sorted(_SOURCES.glob("*.h"))
    texts = (ctypes.c_char_p * len(headers))(*(h.read_bytes() for h in headers))
    names = (ctypes.c_char_p * len(headers))(*(h.name.encode() for h in headers))
    source = (_SOURCES / name).read_bytes()
    ask(
        library.nvrtcCreateProgram,
        ctypes.byref(program), source, name.encode(), len(headers), texts, names,
    )  # fmt: skip
    try:
        flags = (ctypes.c_char_p * len(_FLAGS))(*_FLAGS)
        if library.nvrtcCompileProgram(program, len(_FLAGS), flags):
            log = answer(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog)
            raise CompileError(f"NVRTC does not compile {name}:\n{log.decode(errors='replace')}")
        return answer(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
