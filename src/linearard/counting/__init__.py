"""What a training step computes, counted from the configuration alone."""

from linearard.counting.flops import step_flops
from linearard.counting.launches import worth_recording
from linearard.counting.passes import (
    NOTHING,
    WHOLE,
    Pass,
    learning,
    passes,
    related_layers,
    teacher_reads,
)
from linearard.counting.products import Product, step_products, visible_pairs
from linearard.counting.shapes import LayerShape, ModelShape, Projection

__all__ = [
    "NOTHING",
    "WHOLE",
    "LayerShape",
    "ModelShape",
    "Pass",
    "Product",
    "Projection",
    "learning",
    "passes",
    "related_layers",
    "step_flops",
    "step_products",
    "teacher_reads",
    "visible_pairs",
    "worth_recording",
]
