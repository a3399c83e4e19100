"""Tensors between a GPU and pinned host memory, moved while the GPU computes.

A copy waits for what was asked of the GPU before it and for earlier copies of the other direction; what is
asked of the GPU afterwards does not wait for it. Tensors on the GPU are allocated and let go of on the stream
that computes, in its order: their memory comes back however far the host runs ahead of the GPU
(`Tensor.record_stream` would keep it until the host sees that the copy has ended).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Moving:
    """Tensors on a device, while they are copied; they stay at least until the device waits for the copies.

    Attributes:
        tensors: that are read, or that arrive.
    """

    def __init__(self, tensors: Sequence[Tensor], event: Any = None) -> None:
        self.tensors, self._event = list(tensors), event

    def wait(self) -> list[Tensor]:
        """Let whatever is asked of the device from now on come after the copies; the tensors."""
        event, self._event = self._event, None
        if event is not None:
            torch.cuda.current_stream(self.tensors[0].device).wait_event(event)
        return self.tensors

    def __del__(self) -> None:
        self.wait()  # their memory goes to who asks for it next


def pinned_like(tensor: Tensor) -> Tensor:
    """An uninitialised tensor of the same kind in host memory, pinned if this one is on a GPU."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)


def to_host(tensors: Sequence[Tensor], hosts: Sequence[Tensor]) -> Moving:
    """Begin to copy tensors of one device.

    Args:
        tensors: on a GPU or a CPU; not to be changed before the device has waited.
        hosts: of the same shapes and dtypes; for those on a GPU: pinned.
    """
    if not tensors[0].is_cuda:
        for tensor, host in zip(tensors, hosts, strict=True):
            host.copy_(tensor)
        return Moving(tensors)
    _, down = _streams(tensors[0].device)
    down.wait_stream(torch.cuda.current_stream(tensors[0].device))
    with torch.cuda.stream(down):
        for tensor, host in zip(tensors, hosts, strict=True):
            host.copy_(tensor, non_blocking=True)
    return Moving(tensors, down.record_event())


def to_device(hosts: Sequence[Tensor], device: torch.device) -> Moving:
    """Begin to copy to a device what `to_host` has brought away; on a CPU it is there already."""
    if device.type != "cuda":
        return Moving(hosts)
    up, down = _streams(device)
    copies = [torch.empty_like(host, device=device) for host in hosts]
    up.wait_stream(torch.cuda.current_stream(device))
    up.wait_stream(down)
    with torch.cuda.stream(up):
        for copy, host in zip(copies, hosts, strict=True):
            copy.copy_(host, non_blocking=True)
    return Moving(copies, up.record_event())


@functools.cache
def _streams(device: torch.device) -> tuple[Any, Any]:
    """Of copies to this GPU, and from it."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)
