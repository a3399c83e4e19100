"""Relation KL for Hopper GPUs, in CUDA C++: causal relations in bfloat16, head_dim 64 or 128."""

from linearard.ops.relation_kl.hopper.kernels import Kernels, unsupported

__all__ = ["Kernels", "unsupported"]
