"""What a decoder's layers compute: queries, keys and values, and the hidden states between layers."""

from linearard.capture.attention import (
    AttentionTap,
    LayerAttention,
    attention_layers,
    has_own_kernels,
    needs_no_mask,
    unpadded,
)
from linearard.capture.contexts import StopForward
from linearard.capture.layers import LayerTap
from linearard.capture.sdpa import padded_length
from linearard.capture.sequence import SharedSequence

__all__ = [
    "AttentionTap",
    "LayerAttention",
    "LayerTap",
    "SharedSequence",
    "StopForward",
    "attention_layers",
    "has_own_kernels",
    "needs_no_mask",
    "padded_length",
    "unpadded",
]
