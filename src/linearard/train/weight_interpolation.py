"""Ending a stage between the weights that it began with and those that it reached."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from linearard.model import Adapter
from linearard.model.shares import is_sharded, local
from linearard.train.held_out import Look

_NEARER = 0.8  # of the untrained model's KL


class InitialWeights:
    """The trained weights of an adapter as a stage finds them, in host memory.

    A model on the straight line between two ends of one training is often better on what the training
    did not show it than the later end, and nearly as good on what it did (WiSE-FT, arXiv 2109.01903).
    For LoRA that is new in this stage, one factor of every product begins at zero: that factor alone is
    scaled, so that the product is on the line. Of LoRA that was trained before, every factor is on its own.

    Args:
        adapter: what the stage will train.
        needed: false where all of the change will be kept; nothing is remembered then.
    """

    def __init__(self, adapter: Adapter, needed: bool = True) -> None:
        self._parameters = adapter.parameters() if needed else []
        self._begun = _on_host(self._parameters)
        new = _all_zero(self._parameters, self._begun)
        scaled = adapter.config.kind == "lora" and any(new)
        self._moved = new if scaled else [True] * len(new)

    @torch.no_grad()
    def restore(self) -> None:
        """Put every weight back."""
        for parameter, begun in zip(self._parameters, self._begun, strict=True):
            local(parameter).copy_(begun)

    def blend(self, share: float) -> None:
        """Leave of the change since then this share."""
        if share < 1:
            self._blend(_on_host(self._parameters), share)

    @torch.no_grad()
    def _blend(self, reached: list[Tensor], share: float) -> None:
        for parameter, begun, end, moved in zip(
            self._parameters, self._begun, reached, self._moved, strict=True
        ):
            local(parameter).copy_(torch.lerp(begun, end, share) if moved else end)

    def best_share(
        self, shares: list[float], look: Callable[[], Look], untrained: Look
    ) -> tuple[float, dict[float, Look]]:
        """Leave the share of the change whose look costs least, of those nearer than the untrained model.

        Nearer by a fifth of its KL: other text than the held-out loses more. They are tried from the largest
        on, until a good one is followed by one that costs more.

        Args:
            shares: to choose from.
            look: measures the model as it is.
            untrained: a look at the stretched model before any stage. Where no share is so near, those that
                are not worse count; where every share is worse than that, the one of least KL is left.

        Returns:
            The share, and the look at each.
        """
        reached = _on_host(self._parameters)
        found: dict[float, Look] = {}
        best: float | None = None
        for share in sorted(shares, reverse=True):
            self._blend(reached, share)
            found[share] = look()
            if best is not None and not found[share].cost < found[best].cost:
                break
            if found[share].no_worse_than(untrained, _NEARER):
                best = share
        good = [share for share in found if found[share].no_worse_than(untrained)]
        if best is None and good:
            best = min(good, key=lambda s: found[s].cost)
        if best is None:
            best = min(found, key=lambda s: found[s].kl if found[s].finite else math.inf)
        self._blend(reached, best)
        return best, found


def _on_host(parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    return [local(parameter.detach()).to("cpu", copy=True) for parameter in parameters]


def _all_zero(parameters: list[torch.nn.Parameter], shares: list[Tensor]) -> list[bool]:
    """Whether each weight is zero everywhere, in other processes' shares of it too."""
    zero = torch.tensor([not share.any() for share in shares], dtype=torch.int32)
    if any(map(is_sharded, parameters)):
        zero = zero.to(parameters[0].device)
        torch.distributed.all_reduce(zero, torch.distributed.ReduceOp.MIN)
    return [bool(flag) for flag in zero.tolist()]
