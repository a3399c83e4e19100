"""Fused kernels. Nothing outside this folder imports triton."""

from linearard.ops.relation_kl.triton.backward import backward
from linearard.ops.relation_kl.triton.forward import forward
from linearard.ops.relation_kl.triton.tiles import interpreted

__all__ = ["backward", "forward", "interpreted"]
