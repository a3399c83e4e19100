"""The steps of a decoder layer between its matrix products, each in one pass over memory."""

from linearard.ops.pointwise.api import (
    rms_norm,
    rms_norm_backward,
    rotate,
    rotate_backward,
    swiglu,
    swiglu_backward,
)

__all__ = [
    "rms_norm",
    "rms_norm_backward",
    "rotate",
    "rotate_backward",
    "swiglu",
    "swiglu_backward",
]
