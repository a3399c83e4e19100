"""How many positions each term of an objective counts, and what a batch's means weigh in a step.

A term is a mean over positions. Where batches count different numbers of them (repeated passages, padding,
a short last batch), the mean over a step's batches and processes is not the mean over its positions: each
batch weighs as much as it counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from linearard.distill.config import ObjectiveConfig

#: Inputs whose values decide how many positions count.
_DECIDING = ("attention_mask", "repeated")


def term_counts(config: ObjectiveConfig, batch: Mapping[str, Any]) -> Tensor:
    """Positions that each term of `config.weights` counts in a batch, float64 on its device.

    Args:
        config: the terms.
        batch: `input_ids` `[batch, tokens]`, and `attention_mask` and `repeated` where there are such.
    """
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    mask = None if mask is None else mask.bool()
    repeated = batch.get("repeated") if config.repeated_weight else None
    everywhere = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    terms = {term.name: term for term in config.output_terms}
    counted = [
        terms[name].counted(config, everywhere, repeated) if name in terms else everywhere
        for name in config.weights
    ]
    found = [positions.sum(dtype=torch.float64) for positions in counted]
    return torch.stack(found)


def needs_shares(batches: Sequence[Mapping[str, Any]], processes: int) -> bool:
    """Whether the batches of a step may count differently; the same answer in every process."""
    if processes > 1:
        return True
    if len(batches) < 2:
        return False
    sizes = {(batch.get("part", ""), batch["input_ids"].shape) for batch in batches}
    parts = {part for part, _ in sizes}
    return len(sizes) > len(parts) or any(name in batches[0] for name in _DECIDING)


def step_shares(
    objectives: Mapping[str, ObjectiveConfig],
    batches: Sequence[Mapping[str, Any]],
    add_up: Any = lambda counts: counts,
) -> list[Tensor]:
    """What each batch's terms are multiplied with, so that the mean over batches is that over positions.

    A batch's share is what it counts over the mean of the step's batches of its part: 1 where all count
    alike. Parts keep weighing as many batches as they have.

    Args:
        objectives: by part; "" where there are none.
        batches: of a step, in this process.
        add_up: sums a tensor over processes.

    Returns:
        Of each batch, float32 `[terms]` in the order of its objective's `weights`.
    """
    parts = [batch.get("part", "") for batch in batches]
    found = [
        term_counts(objectives[part], batch) for part, batch in zip(parts, batches, strict=True)
    ]
    means = {}
    for part in objectives:  # in one order everywhere: processes wait for each other
        own = [counts for counts, of in zip(found, parts, strict=True) if of == part]
        number = torch.full((1,), float(len(own)), dtype=torch.float64, device=found[0].device)
        zeros = torch.zeros(
            len(objectives[part].weights), dtype=torch.float64, device=number.device
        )
        total = add_up(torch.cat([sum(own, zeros), number]))
        means[part] = total[:-1] / total[-1].clamp(min=1)
    return [
        (counts / means[part].clamp(min=torch.finfo(torch.float64).tiny)).float()
        for counts, part in zip(found, parts, strict=True)
    ]
