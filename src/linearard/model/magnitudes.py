"""Numbers that no training leaves on purpose: NaN, infinite, absurdly large."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from linearard.errors import NonFiniteLossError
from linearard.model.adapters import Adapter
from linearard.model.shares import is_sharded, local

#: Weights of language models stay below some hundreds; float16 ends at 65,504.
LARGEST_WEIGHT = 1e6


def out_of_range(named: Iterable[tuple[str, Tensor]], largest: float) -> str:
    """The first tensor with a value that is not finite or whose size is above `largest`, in words.

    Empty where there is none. Tensors of whole numbers are passed over. Waits for a device once. Of tensors
    that are divided among processes each looks at its share, and all get the first one's answer that has one.
    """
    named = list(named)
    found = _out_of_range([(name, local(tensor)) for name, tensor in named], largest)
    if any(is_sharded(tensor) for _, tensor in named):
        answers: list[str] = [""] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(answers, found)
        found = next(filter(None, answers), "")
    return found


def _out_of_range(named: Iterable[tuple[str, Tensor]], largest: float) -> str:
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in named:
        if tensor.is_floating_point() and tensor.numel():
            by_device.setdefault(tensor.device, []).append((name, tensor.detach()))
    for some in by_device.values():
        sizes = [torch.stack(torch.aminmax(t)).abs().amax().float() for _, t in some]
        for (name, _), size in zip(some, torch.stack(sizes).tolist(), strict=True):
            if not size <= largest:  # NaN is not
                return f"{name} with {size:.3g}"
    return ""


def check_weights(adapter: Adapter, what: str) -> None:
    """Refuse trained weights that are no result.

    Args:
        adapter: holds them.
        what: how a message calls them, such as "the weights after step 4".

    Raises:
        NonFiniteLossError: one is not finite, or beyond 1e6.
    """
    trained = {id(parameter) for parameter in adapter.parameters()}
    named = [(name, p) for name, p in adapter.model.named_parameters() if id(p) in trained]
    if found := out_of_range(named, LARGEST_WEIGHT):
        raise NonFiniteLossError(
            expected=f"{what} to be finite and none beyond {LARGEST_WEIGHT:.0e}",
            got=found,
            fix="Lower learning_rate, or train in float32.",
        )
