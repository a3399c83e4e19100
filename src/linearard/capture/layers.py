"""See the hidden states that each decoder layer hands on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn


class LayerTap:
    """Collects the outputs of a decoder's layers while asked to.

    Args:
        model: a `transformers` decoder. Hooks are put on its layers; results do not change.
    """

    def __init__(self, model: nn.Module) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        self._collected: dict[int, Tensor] | None = None
        self._wanted: frozenset[int] = frozenset()
        self.layers: dict[int, nn.Module] = {}
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                indices = {
                    part.layer_idx
                    for part in layer.modules()
                    if isinstance(getattr(part, "layer_idx", None), int)
                }
                if len(indices) == 1:
                    self.layers[indices.pop()] = layer
        for index, layer in self.layers.items():
            layer.register_forward_hook(partial(self._see, index))

    @contextlib.contextmanager
    def collecting(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Outputs `[batch, tokens, hidden]` by layer of the forward pass inside the block."""
        self._collected, self._wanted = {}, frozenset(layers)
        try:
            yield self._collected
        finally:
            # A layer that is recomputed in the backward pass is not collected a second time.
            self._collected = None

    def _see(self, index: int, layer: nn.Module, args: Any, output: Any) -> None:
        if self._collected is not None and index in self._wanted:
            self._collected[index] = output if isinstance(output, Tensor) else output[0]
