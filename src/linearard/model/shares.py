"""Tensors of which each process holds a share (PyTorch's `DTensor`), and plain ones, by the same names."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def several_processes() -> bool:
    """Whether this is one of several processes that work on the same."""
    distributed = torch.distributed
    running = distributed.is_available() and distributed.is_initialized()
    return running and distributed.get_world_size() > 1


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a share of it."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory: the tensor itself, or its share."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, detached; of a divided one every process must ask for it at once."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()  # type: ignore[attr-defined]


def share_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor, the same in all processes, what this process holds if it is divided as `like`."""
    return local(divided_like(tensor, like)) if is_sharded(like) else tensor


def divided_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, divided as `like` is."""
    from torch.distributed.tensor import distribute_tensor

    options = {"src_data_rank": None}  # every process has the numbers
    placed = tensor.to(like.device)
    return distribute_tensor(placed, like.device_mesh, like.placements, **options)  # type: ignore[attr-defined]


def joined(share: Tensor, like: Tensor) -> Tensor:
    """The tensor of which this process has a share that is divided as `like` is; plain where `like` is."""
    if not is_sharded(like):
        return share
    from torch.distributed.tensor import DTensor

    options = {"shape": like.shape, "stride": like.stride(), "run_check": False}
    placed = share.to(like.device)
    return DTensor.from_local(placed, like.device_mesh, like.placements, **options)  # type: ignore[attr-defined]


def mean_gradient(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A gradient in the form that `parameter.grad` has; of a divided parameter its mean over processes.

    Args:
        gradient: of the whole weight, from this process's text.
        parameter: as the optimizer has it.
    """
    if not is_sharded(parameter):
        return gradient
    from torch.distributed.tensor import DTensor, Partial

    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    parts = DTensor.from_local(gradient / mesh.size(), mesh, [Partial("sum")], run_check=False)
    return parts.redistribute(placements=parameter.placements)  # type: ignore[attr-defined]


def gathered(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors by name, detached. Every process must ask at once; see `whole`.

    Of divided tensors the first process alone keeps anything, in host memory: one at a time is whole
    elsewhere.
    """
    found = {}
    for name, tensor in named:
        all_of_it = whole(tensor)
        if not is_sharded(tensor):
            found[name] = all_of_it
        elif torch.distributed.get_rank() == 0:
            found[name] = all_of_it.cpu()
    return found
