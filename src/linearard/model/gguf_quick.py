"""A quick reader under `transformers` where it reads a GGUF with the package `gguf`.

That package makes several arrays of a mapped file for every text of a vocabulary: half a minute for
150,000 tokens and as many merges, each time that a configuration, a tokenizer or weights are read.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np


@contextlib.contextmanager
def quick_gguf() -> Iterator[None]:
    """Inside the block `gguf.GGUFReader` reads arrays quickly; what it gives is the same."""
    try:
        import gguf
    except ImportError:  # transformers says what is missing
        yield
        return
    slow = gguf.GGUFReader
    gguf.GGUFReader = _quick(slow)
    try:
        yield
    finally:
        gguf.GGUFReader = slow


def _quick(slow: type) -> type:
    class QuickReader(slow):
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[Any, ...]:
            from gguf import GGUFValueType

            if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
                return super()._get_field_parts(orig_offs, raw_type)
            plain = self.data.view(np.ndarray)  # whose slices cost a tenth of a mapped file's
            kind, count = struct.unpack_from("=IQ", plain, orig_offs)
            first = orig_offs + 12
            header = [
                plain[orig_offs : orig_offs + 4].view(np.uint32),
                plain[first - 8 : first].view(np.uint64),
            ]
            number = self.gguf_scalar_to_np.get(kind)
            types = [GGUFValueType.ARRAY, GGUFValueType(kind)]
            if not count:
                return 12, header, [], types[:1]
            if number is not None:
                size = count * np.dtype(number).itemsize
                values = list(plain[first : first + size].view(number).reshape(count, 1))
                return 12 + size, header + values, list(range(2, 2 + count)), types
            if kind != GGUFValueType.STRING:
                return super()._get_field_parts(orig_offs, raw_type)
            parts, place = header, first
            read = struct.Struct("=Q").unpack_from
            for _ in range(count):
                begin = place + 8
                (length,) = read(plain, place)
                parts += (plain[place:begin].view(np.uint64), plain[begin : begin + length])
                place = begin + length
            return place - orig_offs, parts, list(range(3, len(parts), 2)), types

    return QuickReader
