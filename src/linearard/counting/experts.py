"""Mixtures of experts: what of them runs for a token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

#: Under which names configurations say how many experts a token goes through.
_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k")


def expert_matrices(layer: nn.Module, config: Any) -> Iterator[tuple[int, int, bool]]:
    """Products that a token's experts are together, as inputs, outputs and whether they lead in.

    `transformers` keeps the matrices of a layer's experts in one tensor of three dimensions. A token goes
    through a few of them, which cost as much as one matrix of that many times their inner width. The
    router that chooses them is a matrix of its own, mostly no linear layer.

    Args:
        layer: a decoder layer.
        config: the model's text configuration.
    """
    active = next((n for n in (getattr(config, name, None) for name in _ACTIVE) if n), 1)
    hidden = config.hidden_size
    for path, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        routes = path.endswith((".gate", ".router")) and not isinstance(module, nn.Linear)
        if routes and isinstance(weight, nn.Parameter) and weight.ndim == 2:
            yield hidden, len(weight), True
    for path, weights in layer.named_parameters():
        if weights.ndim != 3 or "proj" not in path:
            continue
        inner = active * (weights[0].numel() // hidden)
        leads_in = "down" not in path.rsplit(".", 1)[-1]
        yield (hidden, inner, True) if leads_in else (inner, hidden, False)
