"""Queries, keys and values of each layer, through the `transformers` attention interface."""

from linearard.capture.attention import AttentionTap, LayerAttention, StopForward

__all__ = ["AttentionTap", "LayerAttention", "StopForward"]
