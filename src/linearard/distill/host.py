"""The teacher's operands in host memory, layer by layer, until the student comes to them."""

from __future__ import annotations

import torch
from torch import Tensor

from linearard.model import Arriving, pinned_like, to_device, to_host


class HostLayers:
    """Tensors by layer and name.

    They move while the device computes. The next layer is on its way before it is asked for, whether layers
    are asked for upwards (a forward pass) or downwards (recomputation).
    """

    def __init__(self) -> None:
        self._host: dict[int, dict[str, Tensor]] = {}
        self._coming: dict[int, Arriving] = {}
        self._device = torch.device("cpu")
        self._latest: int | None = None

    def put(self, layer: int, tensors: dict[str, Tensor]) -> None:
        """Take these away from the device; whoever else holds one may use it, but not change it."""
        host = {name: pinned_like(tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            self._device = tensor.device
            to_host(tensor, host[name])
        self._host[layer] = host

    def get(self, layer: int) -> dict[str, Tensor]:
        """Those of a layer, on the device that they came from."""
        self._start(layer)
        tensors = self._coming.pop(layer).wait()
        step = -1 if self._latest is not None and layer < self._latest else 1
        self._latest = layer
        ahead = [other for other in self._host if (other - layer) * step > 0]
        if ahead:
            self._start(min(ahead, key=lambda other: abs(other - layer)))
        return dict(zip(self._host[layer], tensors, strict=True))

    def _start(self, layer: int) -> None:
        if layer not in self._coming:
            self._coming[layer] = to_device(list(self._host[layer].values()), self._device)
