"""Decoder layers of the Llama family with fewer, larger steps: the same mathematics and weights."""

from linearard.model.fused.install import fuse_layers, sharing_projections

__all__ = ["fuse_layers", "sharing_projections"]
