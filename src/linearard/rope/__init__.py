"""RoPE scaling: frequency tables, native and stretched views of one model, live checks."""

from linearard.rope.native import carried_keys, depends_on_length, native_window
from linearard.rope.scaling import check_scaling, compute_table, target_window
from linearard.rope.table import RopeTable
from linearard.rope.views import RopeViews

__all__ = [
    "RopeTable",
    "RopeViews",
    "carried_keys",
    "check_scaling",
    "compute_table",
    "depends_on_length",
    "native_window",
    "target_window",
]
