"""What the header of a GGUF file says.

The package `gguf` builds an array for every part of every string and takes half a minute for a vocabulary of
150,000 tokens; this reads it in less than a second. Format: version 2 and 3, little-endian, of the
specification in ggml's repository (docs/gguf.md).
"""

from __future__ import annotations

import mmap
import os
import struct
from functools import lru_cache
from typing import Any

import numpy as np

# Numbers of the format, by its number of the type.
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_FLOAT32 = 0  # among types of tensors


class GgufFile:
    """Metadata and small tensors of a GGUF; its weights are left to `transformers`.

    Args:
        path: of the file.

    Raises:
        ValueError, struct.error, OSError: it is no GGUF, or ends too early.
    """

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            magic, version, tensors, values = reader.numbers("<4sIQQ")
            if magic != b"GGUF" or version not in (2, 3):
                raise ValueError(f"no GGUF of version 2 or 3 (it begins with {magic!r}, {version})")
            self._values = {reader.string(): reader.value() for _ in range(values)}
            places: dict[str, tuple[int, int, int]] = {}
            for _ in range(tensors):
                name, (dimensions,) = reader.string(), reader.numbers("<I")
                size = int(np.prod(reader.numbers(f"<{dimensions}Q")))
                places[name] = (size, *reader.numbers("<IQ"))
            self.tensor_names = list(places)
            step = self._values.get("general.alignment", 32)
            first = -(-reader.place // step) * step
            # All that is read of tensors are factors of frequencies, one a dimension of a head.
            self._tensors = {
                name: np.frombuffer(data, np.float32, size, first + offset).copy()
                for name, (size, kind, offset) in places.items()
                if kind == _FLOAT32 and name.startswith("rope_")
            }

    def value(self, key: str, default: Any = None) -> Any:
        """The value under a key, in which `{arch}` stands for the model's architecture."""
        return self._values.get(key.replace("{arch}", self.architecture), default)

    @property
    def architecture(self) -> str:
        """As llama.cpp names it: `llama`, `qwen2`, ..."""
        return str(self._values.get("general.architecture", ""))

    def tensor(self, name: str) -> np.ndarray | None:
        """A tensor of factors of frequencies, float32 `[numbers]`, or None."""
        return self._tensors.get(name)


class _Reader:
    """Numbers and strings one after another."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.place = data, 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self._data, self.place)
        self.place += struct.calcsize(form)
        return found

    def string(self) -> str:
        (length,) = self.numbers("<Q")
        end = self.place + length
        if end > len(self._data):
            raise ValueError("the file ends within a text")
        text = self._data[self.place : end].decode(errors="replace")
        self.place = end
        return text

    def value(self, kind: int | None = None) -> Any:
        kind = self.numbers("<I")[0] if kind is None else kind
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            if kind not in _NUMBERS:
                raise ValueError(f"values of an unknown type {kind}")
            return self.numbers(f"<{_NUMBERS[kind]}")[0]
        element, count = self.numbers("<IQ")
        if element in _NUMBERS:
            return list(self.numbers(f"<{count}{_NUMBERS[element]}"))
        if count > len(self._data):
            raise ValueError(f"{count} texts in a file of {len(self._data)} bytes")
        return [self.value(element) for _ in range(count)]


def open_gguf(path: str) -> GgufFile:
    """The file at a path, read once while it does not change."""
    status = os.stat(path)
    return _opened(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: str, size: int, changed: int) -> GgufFile:
    return GgufFile(path)
