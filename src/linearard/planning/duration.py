"""Seconds of a training step, from its work and a device's rates (docs/concepts/planner.md)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from linearard.counting.flops import counted_flops
from linearard.counting.products import alike_products, step_products
from linearard.counting.shapes import ModelShape
from linearard.counting.step import NOTHING, Step
from linearard.planning.memory_traffic import optimizer_traffic, step_traffic
from linearard.planning.rates import Rates


@dataclass(frozen=True)
class Duration:
    """One batch, forward and backward.

    Attributes:
        seconds: expected time.
        parts: seconds on the device by kind of work: `gemm`, `lora`, `head`, `attention`, `relation`,
            `elementwise`.
        waiting: seconds in which the device waits for the host to launch.
        flops: operations that count (`step_flops`).
    """

    seconds: float
    parts: dict[str, float]
    waiting: float
    flops: int


def batch_duration(step: Step, rates: Rates, *, graphs: bool = False) -> Duration:
    """Time of one batch without the optimizer.

    The host launches ahead of the device: the slower of the two decides.

    Args:
        step: the batch.
        rates: of the device.
        graphs: whether steps are recorded and replayed, so that nothing waits for the host.
    """
    products = step_products(step)
    parts: Counter[str] = Counter()
    for product, count in alike_products(step).items():
        parts[product.kind] += count * rates.seconds(product)
    parts["elementwise"] = sum(step_traffic(step).values()) / rates.bandwidth
    busy = sum(parts.values())
    waiting = 0.0 if graphs else max(0.0, host_seconds(step, rates) - busy)
    return Duration(
        seconds=busy + waiting,
        parts=dict(parts),
        waiting=waiting,
        flops=counted_flops(products),
    )


def optimizer_seconds(shape: ModelShape, rates: Rates) -> float:
    """Clipping, checking and updating the trained weights, once a step."""
    launched = rates.host.get("optimizer", 0.0) * shape.tensors
    return max(optimizer_traffic(shape) / rates.bandwidth, launched)


def transfer_seconds(count: float, rates: Rates) -> float:
    """Moving bytes between host and device; 0 where that was not measured."""
    return count / rates.bus if rates.bus else 0.0


def host_seconds(step: Step, rates: Rates) -> float:
    """Seconds that launching a batch takes."""
    if step.own_inputs:
        learned = sum(extent != NOTHING for extent in step.student.runs)
        learned += len(step.recomputed) / 3  # a forward pass once more
    else:
        learned = len(step.related)  # fewer steps a layer, but a backward pass for each
    counts = {
        "teacher": sum(extent != NOTHING for extent in step.teacher.runs)
        * bool(step.teacher_reads[0]),
        "student": learned,
        "relation": len(step.related) * len(step.objective.active_relations),
    }
    return sum(rates.host.get(name, 0.0) * count for name, count in counts.items())
