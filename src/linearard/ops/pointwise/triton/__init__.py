"""Fused kernels. Nothing outside this folder imports triton."""

from linearard.ops.pointwise.triton.gating import swiglu, swiglu_backward
from linearard.ops.pointwise.triton.logits import cross_entropy_rows, kl_rows
from linearard.ops.pointwise.triton.norm import rms_norm, rms_norm_backward
from linearard.ops.pointwise.triton.rotary import rotate, rotate_backward
from linearard.ops.pointwise.triton.scaling import scale_

__all__ = [
    "cross_entropy_rows",
    "kl_rows",
    "rms_norm",
    "rms_norm_backward",
    "rotate",
    "rotate_backward",
    "scale_",
    "swiglu",
    "swiglu_backward",
]
