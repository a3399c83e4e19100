"""What each batch of a step weighs, told to the batches themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from linearard.distill import needs_shares, step_shares
from linearard.recipe.stage import RestorationConfig


def add_shares(batches: list[dict[str, Any]], args: RestorationConfig, accelerator: Any) -> None:
    """Put `shares` into the batches of a step that may count differently (see `step_shares`).

    Args:
        batches: of this process.
        args: the stage.
        accelerator: of `accelerate`, for the sum over processes.
    """
    if not needs_shares(batches, args.world_size):
        return

    def add_up(counts: Tensor) -> Tensor:
        if args.world_size < 2:
            return counts
        # NCCL moves what is on its device alone
        return accelerator.reduce(counts.to(args.device), "sum").to(counts.device)

    objectives = {name: part.objective for name, part in args.all_parts.items()}
    for batch, own in zip(batches, step_shares(objectives, batches, add_up), strict=True):
        batch["shares"] = own
