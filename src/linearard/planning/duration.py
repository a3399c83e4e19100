"""Seconds of a training step, from its work and a device's rates (docs/concepts/planner.md)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from linearard.counting.flops import counted_flops
from linearard.counting.passes import NOTHING, passes, related_layers
from linearard.counting.products import step_products
from linearard.counting.shapes import ModelShape
from linearard.distill import ObjectiveConfig
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


def batch_duration(
    shape: ModelShape,
    objective: ObjectiveConfig,
    tokens: int,
    batch: int,
    rates: Rates,
    *,
    native_window: int,
    fused: bool,
    recompute: bool = False,
    kept_layers: int = 0,
    graphs: bool = False,
    packed: bool = False,
) -> Duration:
    """Time of one batch without the optimizer.

    The host launches ahead of the device: the slower of the two decides.

    Args:
        shape, objective, tokens, batch, native_window, recompute, kept_layers: see `step_products`.
        rates: of the device.
        graphs: whether steps are recorded and replayed, so that nothing waits for the host.
        fused: whether layers that `linearard.model.fused` knows run so.
        packed: whether base weights are in 4 bits.
    """
    sizes = (shape, objective, tokens, batch)
    how = {"native_window": native_window, "recompute": recompute, "kept_layers": kept_layers}
    products = step_products(*sizes, **how, fused=fused)
    traffic = step_traffic(*sizes, **how, fused=fused, packed=packed)
    parts: Counter[str] = Counter()
    for product in products:
        parts[product.kind] += rates.seconds(product)
    parts["elementwise"] = sum(traffic.values()) / rates.bandwidth
    busy = sum(parts.values())
    waiting = 0.0
    if not graphs:
        again = max(0, len(shape.layers) - kept_layers) if recompute else 0
        launching = host_seconds(shape, objective, rates, again=again)
        waiting = max(0.0, launching - busy)
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


def host_seconds(
    shape: ModelShape, objective: ObjectiveConfig, rates: Rates, *, again: int = 0
) -> float:
    """Seconds that launching a batch takes, `again` layers of it twice."""
    teacher, student = passes(shape, objective)
    related = related_layers(shape, objective)
    layers = range(len(shape.layers))
    read = sum(teacher.runs(i) != NOTHING for i in layers) if objective.needs_teacher else 0
    if objective.inputs == "own":
        learned = sum(student.runs(i) != NOTHING for i in layers)
        learned += again / 3  # a forward pass once more
    else:
        learned = len(related)  # fewer steps a layer, but a backward pass for each
    relations = len(related) * len(objective.active_relations)
    counts = {"teacher": read, "student": learned, "relation": relations}
    return sum(rates.host.get(name, 0.0) * count for name, count in counts.items())
