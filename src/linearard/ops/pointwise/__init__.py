"""The steps of a decoder between its matrix products, each in one pass over memory."""

from linearard.ops.pointwise.api import (
    cross_entropy_rows,
    kl_rows,
    rms_norm,
    rms_norm_backward,
    rotate,
    rotate_backward,
    scale_,
    swiglu,
    swiglu_backward,
)

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
