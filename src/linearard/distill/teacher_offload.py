"""The teacher's operands in host memory, layer by layer, until the student comes to them."""

from __future__ import annotations

import torch
from torch import Tensor

from linearard.model import Moving, pinned_like, to_device, to_host


class OffloadedTeacher:
    """Tensors by layer and name.

    They move while the device computes: one layer goes while the next is computed, and the next comes before
    it is asked for, whether layers are asked for upwards (a forward pass) or downwards (recomputation).
    """

    def __init__(self) -> None:
        self._host: dict[int, dict[str, Tensor]] = {}
        self._going: Moving | None = None
        self._coming: dict[int, Moving] = {}
        self._device = torch.device("cpu")
        self._latest: int | None = None

    def put(self, layer: int, tensors: dict[str, Tensor]) -> None:
        """Take these away from the device; whoever else holds one may use it, but not change it."""
        self._let_go()
        self._host[layer] = {name: pinned_like(tensor) for name, tensor in tensors.items()}
        self._going = to_host(list(tensors.values()), list(self._host[layer].values()))
        self._device = self._going.tensors[0].device

    def get(self, layer: int) -> dict[str, Tensor]:
        """Those of a layer, on the device that they came from."""
        self._let_go()
        self._start(layer)
        tensors = self._coming.pop(layer).wait()
        step = -1 if self._latest is not None and layer <= self._latest else 1
        self._latest = layer
        ahead = [other for other in self._host if (other - layer) * step > 0]
        if ahead:
            self._start(min(ahead, key=lambda other: abs(other - layer)))
        return dict(zip(self._host[layer], tensors, strict=True))

    def _start(self, layer: int) -> None:
        if layer not in self._coming:
            self._coming[layer] = to_device(list(self._host[layer].values()), self._device)

    def _let_go(self) -> None:
        """Of the layer that went last: the device waits until it has gone, and its memory is free."""
        if self._going is not None:
            self._going.wait()
            self._going = None
