"""Kullback-Leibler divergence between the attention relations of two models."""

from linearard.ops.relation_kl.api import attention_kl, layer_relation_kl, relation_kl

__all__ = ["attention_kl", "layer_relation_kl", "relation_kl"]
