"""What a decoder's layers compute: queries, keys and values, and the hidden states between layers."""

from linearard.capture.attention import (
    AttentionTap,
    LayerAttention,
    StopForward,
    attention_layers,
    has_own_kernels,
    needs_no_mask,
    unpadded,
)
from linearard.capture.layers import LayerTap
from linearard.capture.sdpa import padded_length

__all__ = [
    "AttentionTap",
    "LayerAttention",
    "LayerTap",
    "StopForward",
    "attention_layers",
    "has_own_kernels",
    "needs_no_mask",
    "padded_length",
    "unpadded",
]
