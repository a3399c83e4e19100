"""Tensors between a GPU and pinned host memory, moved while the GPU computes.

A copy waits for what was asked of the GPU before it and for earlier copies of the other direction; what is
asked of the GPU afterwards does not wait for it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Arriving:
    """Copies on a device that may still be on their way."""

    tensors: list[Tensor]
    event: Any

    def wait(self) -> list[Tensor]:
        """The copies; what is asked of the device from now on finds them there."""
        if self.event is not None:
            torch.cuda.current_stream(self.tensors[0].device).wait_event(self.event)
        return self.tensors


def pinned_like(tensor: Tensor) -> Tensor:
    """An uninitialised tensor of the same kind in host memory, pinned if this one is on a GPU."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)


def to_host(tensor: Tensor, host: Tensor) -> None:
    """Begin to copy; the tensor may be let go of at once, but not changed.

    Args:
        tensor: on a GPU or a CPU.
        host: of the same shape and dtype; for one on a GPU: pinned.
    """
    if not tensor.is_cuda:
        host.copy_(tensor)
        return
    _, down = _streams(tensor.device)
    down.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(down):
        host.copy_(tensor, non_blocking=True)
    tensor.record_stream(down)


def to_device(hosts: Sequence[Tensor], device: torch.device) -> Arriving:
    """Begin to copy tensors of `to_host`; on a CPU they are there already, and no copies."""
    if device.type != "cuda":
        return Arriving(list(hosts), None)
    up, down = _streams(device)
    copies = [torch.empty_like(host, device=device) for host in hosts]
    up.wait_stream(torch.cuda.current_stream(device))
    up.wait_stream(down)
    with torch.cuda.stream(up):
        for copy, host in zip(copies, hosts, strict=True):
            copy.copy_(host, non_blocking=True)
            copy.record_stream(up)
    return Arriving(copies, up.record_event())


@functools.cache
def _streams(device: torch.device) -> tuple[Any, Any]:
    """Of copies to this GPU, and from it."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)
