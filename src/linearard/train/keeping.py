"""Ending a stage between the weights that it began with and those that it reached."""

from __future__ import annotations

import torch

from linearard.model import Adapter


class Beginning:
    """The trained weights of an adapter as a stage finds them, in host memory.

    A model on the straight line between two ends of one training is often better on what the training
    did not show it than the later end, and nearly as good on what it did (WiSE-FT, arXiv 2109.01903).

    Args:
        adapter: what the stage will train.
        keep: share of the change that is kept; 1: all, and nothing is remembered.
    """

    def __init__(self, adapter: Adapter, keep: float) -> None:
        self._adapter, self._keep = adapter, keep
        parameters = adapter.parameters() if keep < 1 else []
        self._weights = [p.detach().to("cpu", copy=True) for p in parameters]

    @torch.no_grad()
    def blend(self) -> None:
        """Leave of the change since then the share that is kept."""
        if not self._weights:
            return
        for parameter, begun in zip(self._adapter.parameters(), self._weights, strict=True):
            parameter.lerp_(begun.to(parameter.device), 1 - self._keep)
