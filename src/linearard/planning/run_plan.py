"""The plan of a run: memory, time, tokens and files of every stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from linearard.counting.flops import counted_flops
from linearard.counting.launches import worth_recording
from linearard.counting.passes import learning
from linearard.counting.products import step_products
from linearard.counting.shapes import ModelShape
from linearard.planning.duration import (
    Duration,
    batch_duration,
    optimizer_seconds,
    transfer_seconds,
)
from linearard.planning.memory import Memory, Setting, step_memory
from linearard.planning.optimizers import optimizer_bytes
from linearard.planning.rates import Rates

if TYPE_CHECKING:
    from linearard.recipe import PartConfig, RestorationConfig

#: What a process takes of a GPU beside PyTorch's own memory, and what falls between its blocks.
CONTEXT_BYTES, FRAGMENTS = 0.5 * 2**30, 0.02
_FLOAT32 = 4


@dataclass(frozen=True)
class PartPlan:
    """One part of a stage.

    Attributes:
        name: of the part; "" where the stage has none.
        window, batch: tokens; sequences.
        batches: in the whole stage; None: as many as the data gives.
        tokens: read in the whole stage, or None.
        memory: the fullest moment.
        duration: of one batch; None: the device's rates are not known.
        recorded: whether its steps are replayed as a CUDA graph.
        working: bytes that come and go with a step of this part alone.
    """

    name: str
    window: int
    batch: int
    batches: int | None
    tokens: int | None
    memory: Memory
    duration: Duration | None
    recorded: bool
    working: float


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        name: of the stage.
        parts: its parts.
        steps: optimizer steps, or None: as many as the data gives.
        step_seconds: of a step, on average over the parts; None: not known.
        seconds, tokens: of the stage, where known.
        checkpoint: bytes of one checkpoint; as many as `kept` stay.
        kept: checkpoints on disk at the end; None: all.
        room: bytes that PyTorch takes of a GPU: beside what a step holds, the memory that recordings of other
            parts work in.
    """

    name: str
    parts: list[PartPlan]
    steps: int | None
    step_seconds: float | None
    seconds: float | None
    tokens: int | None
    checkpoint: float
    kept: int | None
    room: float

    @property
    def peak(self) -> float:
        """Most bytes held at any moment."""
        return max(part.memory.peak for part in self.parts)


@dataclass(frozen=True)
class RunPlan:
    """All stages of a recipe.

    Attributes:
        shape: the model.
        precision: `mixed`, where products are in half precision, or `float32`.
        stages: in order.
        final: bytes of the trained weights that the run leaves.
    """

    shape: ModelShape
    precision: str
    stages: list[StagePlan]
    final: float

    @property
    def peak(self) -> float:
        """Most bytes held in any stage."""
        return max(stage.peak for stage in self.stages)

    @property
    def needed(self) -> float:
        """Bytes that a GPU must have: what PyTorch takes, what falls between blocks, the CUDA context."""
        return max(stage.room for stage in self.stages) * (1 + FRAGMENTS) + CONTEXT_BYTES

    @property
    def seconds(self) -> float | None:
        """Of all stages' steps."""
        return _sum([stage.seconds for stage in self.stages])

    @property
    def tokens(self) -> int | None:
        """Of all stages."""
        return _sum([stage.tokens for stage in self.stages])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: bytes, seconds, and the sums."""
        shape = self.shape
        return {
            "parameters": shape.base_parameters,
            "trained_parameters": shape.trained_parameters,
            "precision": self.precision,
            "peak_bytes": self.peak,
            "needed_bytes": self.needed,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "final_bytes": self.final,
            "stages": [asdict(stage) for stage in self.stages],
        }


def plan_run(
    shape: ModelShape,
    stages: Mapping[str, RestorationConfig],
    *,
    native_window: int,
    mixed: bool,
    fused: bool,
    rates: Rates | None,
    records: bool | None = None,
    packed: bool = False,
) -> RunPlan:
    """What every stage of a run needs, on one device.

    Args:
        shape: the model and its adapter.
        stages: their checked arguments.
        native_window: of the model.
        mixed: half precision; else float32.
        fused: whether on a GPU, where layers that `linearard.model.fused` knows run so.
        rates: of the device; None: no times.
        records: whether precision and device let steps be recorded; default: as `fused`.
        packed: base weights in 4 bits.
    """
    records = fused if records is None else records
    if packed:  # no others have a fused form then
        shape = replace(shape, fused=shape.fused & {"norm"})
    plans = []
    for number, (name, stage) in enumerate(stages.items()):
        parts, waiting = stage.all_parts, stage.gradient_accumulation_steps > 1
        state, update = optimizer_bytes(stage.optimizer_name)
        learned = set().union(*(learning(shape, part.objective) for part in parts.values()))
        setting = Setting(
            element=2 if mixed else _FLOAT32,
            fused=fused and mixed,
            packed=packed,
            recompute=stage.recompute,
            kept_layers=stage.kept_layers,
            state=0.0 if stage.offload_optimizer else state,
            update=0.0 if stage.offload_optimizer else update,
            accumulated=waiting,
            graphs=records and shape.steady and stage.records_graphs,
            offload_teacher=stage.offload_teacher,
            remembered=number,
        )
        recorded = {
            part_name
            for part_name, part in parts.items()
            if setting.graphs
            and worth_recording(_flops(shape, part, native_window), len(shape.layers), len(parts))
        }
        planned = [
            _plan_part(
                shape,
                part_name,
                part,
                stage,
                replace(setting, recorded_elsewhere=bool(recorded - {part_name})),
                part_name in recorded,
                learned,
                native_window,
                rates,
            )
            for part_name, part in parts.items()
        ]
        plans.append(_plan_stage(shape, name, stage, planned, rates))
    final = float(_FLOAT32 * shape.trained_parameters)
    return RunPlan(shape, "mixed" if mixed else "float32", plans, final)


def _flops(shape: ModelShape, part: PartConfig, native_window: int) -> int:
    sizes = (shape, part.objective, part.window, part.batch_size)
    return counted_flops(step_products(*sizes, native_window=native_window))


def _room(parts: list[PartPlan], apart: float, update: float) -> float:
    """See `StagePlan.room`.

    Args:
        parts: of the stage.
        apart: bytes of gradients that lie beside all recordings, not within one.
        update: bytes that the optimizer needs for a moment.
    """
    peak = max(part.memory.peak for part in parts)
    recorded = [part for part in parts if part.recorded]
    if not recorded:
        return peak
    lasting = parts[0].memory.peak - parts[0].memory.working
    pairs = [(part, other) for part in parts for other in recorded if part is not other]
    beside = [part.working + other.working for part, other in pairs]
    beside += [other.working + update for other in recorded]
    return max(peak, lasting + apart + max(beside))


def _plan_part(
    shape: ModelShape,
    name: str,
    part: PartConfig,
    stage: RestorationConfig,
    setting: Setting,
    recorded: bool,
    learned: set[tuple[int, int]],
    native_window: int,
    rates: Rates | None,
) -> PartPlan:
    sizes = (shape, part.objective, part.window, part.batch_size)
    options = {"native_window": native_window, "learned": learned}
    memory = step_memory(*sizes, setting, **options)
    alone = replace(setting, recorded_elsewhere=False, accumulated=False, update=0.0)
    working = step_memory(*sizes, alone, **options).working
    duration = None
    if rates is not None:
        duration = batch_duration(
            *sizes,
            rates,
            native_window=native_window,
            fused=setting.fused,
            recompute=setting.recompute,
            kept_layers=setting.kept_layers,
            graphs=recorded,
            packed=setting.packed,
        )
    batches = tokens = None
    if part.sequences is not None:
        whole = part.sequences // part.batch_size if stage.parts else None
        batches = math.ceil(
            (-(-part.sequences // part.batch_size) if whole is None else whole)
            * stage.num_train_epochs
        )
        read = part.sequences if whole is None else whole * part.batch_size
        tokens = int(read * stage.num_train_epochs) * part.window
    if stage.max_steps > 0:
        if len(stage.all_parts) == 1:
            batches = stage.max_steps * stage.gradient_accumulation_steps
            tokens = batches * part.batch_size * part.window
        else:
            batches = tokens = None
    return PartPlan(
        name=name,
        window=part.window,
        batch=part.batch_size,
        batches=batches,
        tokens=tokens,
        memory=memory,
        duration=duration,
        recorded=recorded,
        working=working,
    )


def _plan_stage(
    shape: ModelShape,
    name: str,
    stage: RestorationConfig,
    parts: list[PartPlan],
    rates: Rates | None,
) -> StagePlan:
    accumulation, trained = stage.gradient_accumulation_steps, shape.trained_parameters
    state, needed = optimizer_bytes(stage.optimizer_name)
    batches = _sum([part.batches for part in parts])
    steps = None if batches is None else max(1, math.ceil(batches / accumulation))
    step_seconds = seconds = None
    if rates is not None:
        counts = [part.batches or 1 for part in parts]
        update = optimizer_seconds(shape, rates)
        if stage.offload_optimizer:  # the moments come while others go
            update += transfer_seconds(state * trained, rates)
        spent = sum(p.duration.seconds * n for p, n in zip(parts, counts, strict=True))
        step_seconds = spent / sum(counts) * accumulation + update
        seconds = None if steps is None else spent + steps * update
    return StagePlan(
        name=name,
        parts=parts,
        steps=steps,
        step_seconds=step_seconds,
        seconds=seconds,
        tokens=_sum([part.tokens for part in parts]),
        checkpoint=(_FLOAT32 + state) * trained,
        kept=stage.save_total_limit,
        room=_room(
            parts,
            apart=_FLOAT32 * trained * (accumulation > 1),
            update=0.0 if stage.offload_optimizer else needed * trained,
        ),
    )


def _sum(values: list[Any]) -> Any:
    """Their sum, or None where one is not known."""
    return None if any(value is None for value in values) else sum(values)
