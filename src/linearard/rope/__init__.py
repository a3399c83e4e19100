"""RoPE scaling: frequency tables, native and stretched views of one model, live checks."""

from linearard.rope.scaling import (
    RopeTable,
    check_scaling,
    compute_table,
    depends_on_length,
    native_window,
    target_window,
)
from linearard.rope.views import RopeViews

__all__ = [
    "RopeTable",
    "RopeViews",
    "check_scaling",
    "compute_table",
    "depends_on_length",
    "native_window",
    "target_window",
]
