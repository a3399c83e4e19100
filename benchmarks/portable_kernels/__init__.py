"""Candidate for the portable kernels: 6 u instead of 8, without tensor descriptors. Not run on a GPU yet.

It takes the place of `linearard.ops.relation_kl.triton` where `benchmarks.portable` measures it.
"""

from benchmarks.portable_kernels.backward import backward
from benchmarks.portable_kernels.forward import forward
from linearard.ops.relation_kl.triton.tiles import interpreted

__all__ = ["backward", "forward", "interpreted"]
