"""Decoder layers of the Llama family with fewer, larger steps: the same mathematics and weights."""

from linearard.model.fused.install import fuse_layers

__all__ = ["fuse_layers"]
