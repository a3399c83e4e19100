"""Products of Triton's interpreter, rounded once.

The interpreter multiplies with numpy's BLAS, which adds in an order that depends on the processor and on
the shape of the tile. A GPU adds along head_dim alike in every tile, and the kernels count on it: backward
forms a score in another tile than forward did and must find the same number. In float64, rounded once,
the order does not show.
"""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    from triton.runtime.interpreter import InterpreterBuilder

    plain = InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, *rest):
        result = plain(self, a, b, d, *rest)
        if result.data.dtype == np.float32:
            product = a.data.astype(np.float64) @ b.data.astype(np.float64)
            result.data = (product + d.data).astype(np.float32)
        return result

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
