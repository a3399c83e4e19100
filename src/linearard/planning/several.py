"""What a run on several GPUs needs of each: memory, traffic and time a step, by how the work is shared.

Derived from the plan of one GPU and the bandwidth between them (docs/how-to/several-gpus.md). Nothing here
was fitted to a measurement: communication counts as if no computation ran beside it, which is the worst case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from linearard.counting.shapes import ModelShape
from linearard.counting.step import Step
from linearard.planning.run_plan import CONTEXT_BYTES, FRAGMENTS, PartPlan, RunPlan, StagePlan

if TYPE_CHECKING:
    from linearard.recipe import RestorationConfig

_FLOAT32 = 4
#: Parts of a step's memory that belong to trained weights, and those that grow with tokens.
_TRAINED = ("adapter", "optimizer", "earlier stages", "gradients")
_OF_TOKENS = ("activations", "teacher", "output", "workspace")
_GATHERED = 2  # layers that are whole at a time: the one that runs, and the one that comes


@dataclass(frozen=True)
class Links:
    """Bytes a second that a GPU sends while it receives as many.

    Attributes:
        within: of one node; the default is four fifths of NVLink 4 (450 GB/s each way).
        between: of different nodes; four fifths of 400 Gbit/s a GPU.
    """

    within: float = 3.6e11
    between: float = 4e10


@dataclass(frozen=True)
class Layout:
    """How GPUs share the work.

    Attributes:
        gpus: in all.
        nodes: that they are spread over.
        sharded: `model.sharded`; else each has a copy of the model.
        sharing: `sequence_parallel`: how many share a window.
    """

    gpus: int
    nodes: int = 1
    sharded: bool = False
    sharing: int = 1

    def __str__(self) -> str:
        name = "FSDP2" if self.sharded else "DDP"
        return name + (f", {self.sharing} share a window" if self.sharing > 1 else "")


@dataclass(frozen=True)
class StepOfOne:
    """A stage's most demanding step, as one of several GPUs sees it.

    Attributes:
        stage: its name.
        memory: bytes that the GPU must have.
        gathered, reduced, exchanged: bytes that it sends in a step: weights of others, gradients, and the
            tokens of windows that are shared.
        computing: seconds without communication; None: the device's rates are not known.
        communicating: seconds of communication, were nothing computed beside it.
    """

    stage: str
    memory: float
    gathered: float
    reduced: float
    exchanged: float
    computing: float | None
    communicating: float

    @property
    def seconds(self) -> float | None:
        """Of the step, with no communication beside computation."""
        return None if self.computing is None else self.computing + self.communicating

    @property
    def sent(self) -> float:
        """Bytes in all."""
        return self.gathered + self.reduced + self.exchanged


@dataclass(frozen=True)
class SeveralPlan:
    """A run on several GPUs.

    Attributes:
        layout: how they share the work.
        steps: of each stage.
    """

    layout: Layout
    steps: list[StepOfOne]

    @property
    def memory(self) -> float:
        """Bytes that each GPU must have."""
        return max(step.memory for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: bytes and seconds."""
        return asdict(self) | {"memory": self.memory}


def plan_several(
    plan: RunPlan,
    stages: Mapping[str, RestorationConfig],
    layout: Layout,
    *,
    native_window: int,
    links: Links | None = None,
) -> SeveralPlan:
    """What each of several GPUs needs, and what it sends in a step.

    Args:
        plan: of the same run on one GPU.
        stages: its checked arguments; a step has as many batches a process as they say.
        layout: how the GPUs share the work.
        native_window: of the model, which a teacher reads at a time.
        links: how fast they send; default: those of H100 and H200 nodes.
    """
    links = links or Links()
    steps = [
        _step(plan.shape, stage, stages[stage.name], layout, native_window, links)
        for stage in plan.stages
    ]
    return SeveralPlan(layout, steps)


def choose_layout(
    plan: RunPlan,
    stages: Mapping[str, RestorationConfig],
    gpus: int,
    nodes: int,
    limit: float,
    *,
    native_window: int,
) -> SeveralPlan | None:
    """The first that fits: copies; then shares of the weights; then shares of the windows, too.

    Windows are shared by as few as possible.

    Args:
        plan, stages, native_window: see `plan_several`.
        gpus, nodes: all of them.
        limit: bytes of a GPU.

    Returns:
        None: nothing fits.
    """
    heads = plan.shape.layers[0].heads
    windows = [part.window for stage in plan.stages for part in stage.parts]
    wholes = [gpus, heads, *windows]
    able = [n for n in range(2, gpus + 1) if not any(whole % n for whole in wholes)]
    for sharded, sharing in [(False, 1), (True, 1), *((True, n) for n in able)]:
        layout = Layout(gpus, nodes, sharded, sharing)
        found = plan_several(plan, stages, layout, native_window=native_window)
        if found.memory <= limit:
            return found
    return None


def _step(
    shape: ModelShape,
    stage: StagePlan,
    config: RestorationConfig,
    layout: Layout,
    native_window: int,
    links: Links,
) -> StepOfOne:
    others = 1 - 1 / layout.gpus  # share of a tensor that is not this GPU's
    batches = config.gradient_accumulation_steps
    trained = float(_FLOAT32 * shape.trained_parameters)
    reduced = (batches if layout.sharded else 2) * others * trained
    gathered = exchanged = computing = 0.0
    known = True
    for part in stage.parts:
        weight = (part.batches or 1) / sum(p.batches or 1 for p in stage.parts) * batches
        objective = config.all_parts[part.name].objective
        reads = Step(shape, objective, part.window, part.batch, native_window).teacher_reads[0]
        student = 0 if objective.inputs == "teacher" else 2  # forward and backward
        if layout.sharded:
            everything = _layer_bytes(shape, _element(part, shape)) + trained
            gathered += weight * (reads + student) * others * everything
        if layout.sharing > 1:
            again = bool(config.recompute and student)
            passes = (reads if reads == 1 else 0) + student + again
            exchanged += weight * passes * _exchanged(shape, part, layout)
        if part.duration is None:
            known = False
        else:
            computing += weight * part.duration.seconds / layout.sharing
    slow = links.within if layout.nodes == 1 else links.between
    near = layout.sharing <= layout.gpus // layout.nodes
    communicating = (gathered + reduced) / slow
    communicating += exchanged / (links.within if near else links.between)
    return StepOfOne(
        stage=stage.name,
        memory=max(_memory(shape, part, layout) for part in stage.parts),
        gathered=gathered,
        reduced=reduced,
        exchanged=exchanged,
        computing=computing if known else None,
        communicating=communicating,
    )


def _memory(shape: ModelShape, part: PartPlan, layout: Layout) -> float:
    held = dict(part.memory.parts)
    if layout.sharded:
        layers = min(_layer_bytes(shape, _element(part, shape)), held["weights"])
        a_layer = (layers + _FLOAT32 * shape.trained_parameters) / len(shape.layers)
        held["weights"] -= layers * (1 - 1 / layout.gpus)
        held |= {name: held.get(name, 0.0) / layout.gpus for name in _TRAINED}
        held["gathered layers"] = (_GATHERED + 1) * a_layer  # and the gradients of one
    else:  # what DistributedDataParallel sends from
        held["buckets"] = held.get("gradients", 0.0)
    if layout.sharing > 1:
        held |= {name: held.get(name, 0.0) / layout.sharing for name in _OF_TOKENS}
    return sum(held.values()) * (1 + FRAGMENTS) + CONTEXT_BYTES


def _layer_bytes(shape: ModelShape, element: float) -> float:
    """Bytes of the frozen weights of all layers; embedding, head and norms outside of them stay whole."""
    inside = sum(p.inputs * p.outputs for layer in shape.layers for p in layer.projections)
    return element * (inside + shape.frozen_copies)


def _element(part: PartPlan, shape: ModelShape) -> float:
    return part.memory.parts["weights"] / shape.base_parameters


def _exchanged(shape: ModelShape, part: PartPlan, layout: Layout) -> float:
    """Bytes that a GPU sends for one pass over a window: queries, keys, values, and what comes of them."""
    size = layout.sharing
    sent = part.batch * part.window / size * (1 - 1 / size)
    # Keys and values are repeated where there are too few heads of them.
    width = sum(
        2 * (x.heads + math.lcm(x.kv_heads, size)) * x.head_dim for x in shape.layers if x.heads
    )
    return _element(part, shape) * sent * width
