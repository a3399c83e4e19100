"""Kullback-Leibler divergence between the attention relations of two models."""

from linearard.ops.relation_kl.api import attention_kl, layer_relation_kl, relation_kl
from linearard.ops.relation_kl.dispatch import IMPLEMENTATIONS

__all__ = ["IMPLEMENTATIONS", "attention_kl", "layer_relation_kl", "relation_kl"]
