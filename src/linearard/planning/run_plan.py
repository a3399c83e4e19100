"""The plan of a run: memory, time, tokens and files of every stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from linearard.counting.flops import counted_flops
from linearard.counting.launches import worth_recording
from linearard.counting.products import step_products
from linearard.counting.shapes import ModelShape
from linearard.counting.step import Step
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
        steps = {
            part_name: Step(
                shape,
                part.objective,
                part.window,
                part.batch_size,
                native_window,
                fused=fused and mixed,
                packed=packed,
                recompute=stage.recompute,
                kept_layers=stage.kept_layers,
            )
            for part_name, part in stage.all_parts.items()
        }
        state, update = optimizer_bytes(stage.optimizer_name)
        setting = Setting(
            element=2 if mixed else _FLOAT32,
            state=0.0 if stage.offload_optimizer else state,
            update=0.0 if stage.offload_optimizer else update,
            accumulated=stage.gradient_accumulation_steps > 1,
            graphs=records and shape.steady and stage.records_graphs,
            offload_teacher=stage.offload_teacher,
            remembered=number,
        )
        plans.append(_Planned(name, stage, steps, setting, rates).whole())
    final = float(_FLOAT32 * shape.trained_parameters)
    return RunPlan(shape, "mixed" if mixed else "float32", plans, final)


@dataclass(frozen=True)
class _Planned:
    """A stage that is being planned.

    Attributes:
        name, stage: its name and its checked arguments.
        steps: a batch of each part.
        setting: what all of them share.
        rates: of the device; None: no times.
    """

    name: str
    stage: RestorationConfig
    steps: dict[str, Step]
    setting: Setting
    rates: Rates | None

    def whole(self) -> StagePlan:
        recorded = {name for name, step in self.steps.items() if self._is_recorded(step)}
        learned = frozenset().union(*(step.learning for step in self.steps.values()))
        parts = [
            self._part(name, name in recorded, bool(recorded - {name}), learned)
            for name in self.steps
        ]
        stage, (some, *_) = self.stage, self.steps.values()
        accumulation, trained = stage.gradient_accumulation_steps, some.shape.trained_parameters
        state, _ = optimizer_bytes(stage.optimizer_name)
        batches = _sum([part.batches for part in parts])
        steps = None if batches is None else max(1, math.ceil(batches / accumulation))
        step_seconds = seconds = None
        if self.rates is not None:
            counts = [part.batches or 1 for part in parts]
            update = optimizer_seconds(some.shape, self.rates)
            if stage.offload_optimizer:  # the moments come while others go
                update += transfer_seconds(state * trained, self.rates)
            spent = sum(p.duration.seconds * n for p, n in zip(parts, counts, strict=True))
            step_seconds = spent / sum(counts) * accumulation + update
            seconds = None if steps is None else spent + steps * update
        return StagePlan(
            name=self.name,
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
                update=self.setting.update * trained,
            ),
        )

    def _is_recorded(self, step: Step) -> bool:
        if not self.setting.graphs:
            return False
        flops = counted_flops(step_products(step))
        return worth_recording(flops, len(step.shape.layers), len(self.steps))

    def _part(
        self, name: str, recorded: bool, beside_others: bool, learned: Set[tuple[int, int]]
    ) -> PartPlan:
        part, step = self.stage.all_parts[name], self.steps[name]
        setting = replace(self.setting, recorded_elsewhere=beside_others)
        alone = replace(setting, recorded_elsewhere=False, accumulated=False, update=0.0)
        duration = None
        if self.rates is not None:
            duration = batch_duration(step, self.rates, graphs=recorded)
        batches, tokens = _read(self.stage, part)
        return PartPlan(
            name=name,
            window=part.window,
            batch=part.batch_size,
            batches=batches,
            tokens=tokens,
            memory=step_memory(step, setting, learned),
            duration=duration,
            recorded=recorded,
            working=step_memory(step, alone, learned).working,
        )


def _read(stage: RestorationConfig, part: PartConfig) -> tuple[int | None, int | None]:
    """Batches of a part and their tokens in a whole stage, where they are known."""
    if stage.max_steps > 0:
        if len(stage.all_parts) > 1:
            return None, None
        batches = stage.max_steps * stage.gradient_accumulation_steps
        return batches, batches * part.batch_size * part.window
    if part.sequences is None:
        return None, None
    full, rest = divmod(part.sequences, part.batch_size)
    if stage.parts:  # a batch of a part is whole
        rest = 0
    batches = math.ceil((full + (rest > 0)) * stage.num_train_epochs)
    read = int((full * part.batch_size + rest) * stage.num_train_epochs)
    return batches, read * part.window


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


def _sum(values: list[Any]) -> Any:
    """Their sum, or None where one is not known."""
    return None if any(value is None for value in values) else sum(values)
