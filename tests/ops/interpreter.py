"""Triton's interpreter as the tests need it: two fixtures that each file of interpreted cases imports."""

from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    """Products rounded once.

    The interpreter multiplies with numpy's BLAS, which adds in an order that depends on the processor and
    on the shape of the tile. A GPU adds along head_dim alike in every tile, and the kernels count on it:
    backward forms a score in another tile than forward did and must find the same number. In float64,
    rounded once, the order does not show.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    plain = InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, *rest):
        result = plain(self, a, b, d, *rest)
        if result.data.dtype == np.float32:
            product = a.data.astype(np.float64) @ b.data.astype(np.float64)
            result.data = (product + d.data).astype(np.float32)
        return result

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture(autouse=True)
def one_patch_a_launch(monkeypatch):
    """A kernel's calls of other functions find `triton.language` as its launch has patched it.

    The interpreter patches it again for each of these calls, which takes half of its time.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    plain = interpreter._patch_lang
    both = SimpleNamespace(
        __globals__={"tl": tl, "core": tl.core}
    )  # what Triton's own functions see

    def call(self, *args, **kwargs):
        return self.rewrite()(*args, **kwargs)

    monkeypatch.setattr(interpreter, "_patch_lang", lambda kernel: plain(both))
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
