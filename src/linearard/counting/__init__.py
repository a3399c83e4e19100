"""What a training step computes, counted from the configuration alone."""

from linearard.counting.flops import step_flops
from linearard.counting.launches import worth_recording
from linearard.counting.products import Product, step_products, visible_pairs
from linearard.counting.shapes import LayerShape, ModelShape, Projection
from linearard.counting.step import Pass, Step

__all__ = [
    "LayerShape",
    "ModelShape",
    "Pass",
    "Product",
    "Projection",
    "Step",
    "step_flops",
    "step_products",
    "visible_pairs",
    "worth_recording",
]
