"""Bytes of a training step: what it holds at its fullest moment, by part (docs/concepts/planner.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from linearard.counting.passes import (
    NOTHING,
    WHOLE,
    learning,
    passes,
    related_layers,
    teacher_reads,
)
from linearard.counting.shapes import ModelShape
from linearard.distill import ObjectiveConfig
from linearard.model import LOGIT_ELEMENTS
from linearard.planning.activations import LayerActivations
from linearard.planning.memory_traffic import PACKED

#: cuBLAS keeps one workspace for the thread of forward passes and one for that of backward passes.
_LIBRARIES = 2 * 32 * 2**20
_FLOAT32 = 4
_ON_THE_WAY = 2  # layers whose teacher is on the device: the one in use, and one on its way
#: Parts that stay from step to step.
_LASTING = ("weights", "adapter", "optimizer", "earlier stages")


@dataclass(frozen=True)
class Setting:
    """What beside model and objective decides the memory of a step.

    Attributes:
        element: bytes of a weight and of an activation: 2 in mixed precision, 4 in float32.
        fused: whether layers that `linearard.model.fused` knows run so: on a GPU in half precision.
        packed: whether base weights are in 4 bits.
        recompute: gradient checkpointing.
        kept_layers: how many of the last layers it leaves alone.
        state: bytes that the optimizer keeps for each trained weight that learns.
        update: bytes it needs for each while it steps.
        accumulated: whether gradients of an earlier batch wait while this one runs.
        graphs: whether steps may be recorded as CUDA graphs.
        recorded_elsewhere: whether batches of another kind are recorded. Gradients of one kind lie within its
            recording's memory; those of the first of several are held at all times, for the others add to
            them.
        offload_teacher: whether the teacher's q, k and v wait in host memory.
        remembered: copies of the trained weights, kept of earlier stages.
    """

    element: int = 2
    fused: bool = True
    packed: bool = False
    recompute: bool = False
    kept_layers: int = 0
    state: float = 8.0
    update: float = 0.0
    accumulated: bool = False
    graphs: bool = False
    recorded_elsewhere: bool = False
    offload_teacher: bool = False
    remembered: int = 0


@dataclass(frozen=True)
class Memory:
    """The fullest moment of a step.

    Attributes:
        moment: which one.
        parts: bytes by part at that moment, without those that hold nothing then.
    """

    moment: str
    parts: dict[str, float]

    @property
    def peak(self) -> float:
        """Bytes in all."""
        return sum(self.parts.values())

    @property
    def working(self) -> float:
        """Bytes that come and go with a step."""
        return self.peak - sum(self.parts.get(name, 0.0) for name in _LASTING)


def step_memory(
    shape: ModelShape,
    objective: ObjectiveConfig,
    tokens: int,
    batch: int,
    setting: Setting,
    *,
    native_window: int,
    learned: set[tuple[int, int]] | None = None,
) -> Memory:
    """The fullest moment of a step of one batch.

    Args:
        shape: the model.
        objective: the terms of the loss.
        tokens, batch: of a sequence; sequences.
        setting: precision, optimizer, recomputation.
        native_window: see `step_products`.
        learned: projections that have optimizer state (`learning`); default: those of this objective.
    """
    step = _Step(shape, objective, tokens, batch, setting, native_window, learned)
    return max(step.moments(), key=lambda memory: memory.peak)


def weight_bytes(shape: ModelShape, element: int, packed: bool = False) -> dict[str, float]:
    """Bytes of the model before anything is trained: `weights` and `adapter`."""
    copies = shape.frozen_copies  # of direct training, in `element`; the masters are in float32
    base = shape.base_parameters - copies
    saved = (element - PACKED) * shape.packable if packed else 0.0
    return {
        "weights": element * (base + copies) - saved,
        "adapter": float(_FLOAT32 * shape.trained_parameters),
    }


class _Step:
    def __init__(
        self,
        shape: ModelShape,
        objective: ObjectiveConfig,
        tokens: int,
        batch: int,
        setting: Setting,
        native_window: int,
        learned: set[tuple[int, int]] | None,
    ) -> None:
        self.shape, self.objective, self.setting = shape, objective, setting
        self.rows, self.windows = batch * tokens, teacher_reads(objective, tokens, native_window)
        self.own = objective.inputs == "own"
        self.recompute = setting.recompute and self.own
        self.related = set(related_layers(shape, objective))
        self.teacher_pass, self.student_pass = passes(shape, objective)
        self.activations = LayerActivations(
            shape, objective, tokens, batch, setting.element, setting.fused
        )
        own = learning(shape, objective)
        self.gradients = [
            _FLOAT32 * self._weights(index, own) for index in range(len(shape.layers))
        ]
        states = own if learned is None else learned
        self.stateful = sum(self._weights(i, states) for i in range(len(shape.layers)))
        self.casts = [self.activations.weight_casts(index) for index in range(len(shape.layers))]

    def moments(self) -> Iterator[Memory]:
        yield from self._forward() if self.own else self._beside_teacher()
        found = sum(self.gradients)
        # The first steps of a kind have gradients of their own.
        beside = self.setting.recorded_elsewhere * found
        yield self._memory(
            "optimizer step",
            gradients=found * self._copies + beside,
            workspace=self.setting.update * self.stateful,
        )

    def _forward(self) -> Iterator[Memory]:
        kept, waiting = self.activations, self._waiting()
        layers = range(len(self.shape.layers))
        teacher = [kept.teacher(i) if i in self.related else 0.0 for i in layers]
        output = self.rows * self.shape.hidden * self.setting.element
        taught = output * self.objective.needs_teacher_output + sum(
            output for _ in self.objective.compared_layers(len(layers))
        )
        away = self.setting.offload_teacher
        if self.windows[0]:
            read = self.rows // max(1, self.activations.tokens) * self.windows[1]
            yield self._memory(
                "teacher's forward",
                gradients=waiting,
                teacher=(_ON_THE_WAY * max(teacher) if away else sum(teacher)) + taught,
                workspace=kept.passing(read),
            )
        if away and self.recompute:
            # Without recomputation, the student's backward pass keeps what came back from the host.
            last = max(self.related, default=0)
            teacher = [_ON_THE_WAY * teacher[i] if i == last else 0.0 for i in layers]
        inside = [kept.student(i, self.student_pass) for i in layers]
        last = len(layers) - self.setting.kept_layers
        again = [self.recompute and self.student_pass.runs(i) == WHOLE and i < last for i in layers]
        between = [output if again[i] else inside[i] for i in layers]
        after = kept.output(self.student_pass)
        forward = {
            "gradients": waiting,
            "weight casts": sum(
                self.casts[i] for i in layers if self.student_pass.runs(i) != NOTHING
            ),
            "activations": sum(between) + after,
            "teacher": sum(teacher) + taught,
        }
        heads = self._head_workspace()
        if heads:
            yield self._memory("output loss", output=heads, **forward)
        whole = [i for i in layers if self.student_pass.runs(i) == WHOLE]
        passing = kept.passing(self.rows, kept=bool(whole) and not again[whole[-1]])
        yield self._memory("end of the forward pass", workspace=passing, **forward)
        done = 0.0
        for i in reversed(layers):
            if self.student_pass.needed(i) == NOTHING:
                continue
            # Recomputation finds the teacher's q, k, v in its observer, which lives to the end.
            compared = teacher if self.recompute else teacher[: i + 1]
            held = sum(self.casts[j] for j in layers[: i + 1] if j == i or not again[j])
            yield self._memory(
                f"backward pass of layer {i}",
                gradients=self._held(done + self.gradients[i]),
                activations=sum(between[: i + 1]) + (inside[i] if again[i] else 0.0),
                teacher=sum(compared),
                workspace=kept.differentiating(i, self.student_pass),
                **{"weight casts": held},
            )
            done += self.gradients[i]

    def _beside_teacher(self) -> Iterator[Memory]:
        """One layer at a time; its gradients are what the step ends with, or copied by the backward pass."""
        kept, found = self.activations, sum(self.gradients)
        waiting = self._waiting()
        last = max(self.related)
        yield self._memory(
            "end of the forward pass",
            gradients=waiting + found,
            activations=kept.student(last, self.student_pass),
            teacher=kept.teacher(last),
            workspace=kept.passing(self.rows),
            **{"weight casts": sum(self.casts[i] for i in self.related)},
        )
        yield self._memory("backward pass", gradients=waiting + self._copies * found)

    @property
    def _copies(self) -> int:
        """How often the gradients are there at the end: steps that may be recorded ask for them uncopied."""
        return 1 if self.own or self.setting.graphs else 2

    def _waiting(self) -> float:
        """Bytes of gradients that a batch finds when it begins."""
        return sum(self.gradients) * (self.setting.accumulated or self.setting.recorded_elsewhere)

    def _held(self, done: float) -> float:
        """Bytes of gradients when those of `done` bytes have been found in this batch."""
        waiting = self._waiting()
        # Before its recording, a batch's own are apart.
        return waiting + done if self.setting.graphs else max(waiting, done)

    def _memory(self, moment: str, **parts: float) -> Memory:
        static = weight_bytes(self.shape, self.setting.element, self.setting.packed)
        static["earlier stages"] = self.setting.remembered * static["adapter"]
        static["optimizer"] = self.setting.state * self.stateful
        parts["workspace"] = parts.get("workspace", 0.0) + _LIBRARIES
        if self.setting.packed:  # a product unpacks its matrix
            matrix = self.shape.hidden * self.shape.intermediate
            parts["workspace"] += self.setting.element * matrix
        return Memory(moment, {name: x for name, x in (static | parts).items() if x})

    def _weights(self, index: int, among: set[tuple[int, int]]) -> int:
        """Trained weights of a layer that are among the named projections."""
        projections = enumerate(self.shape.layers[index].projections)
        rank = self.shape.rank
        return sum(p.adapter_weights(rank) for at, p in projections if (index, at) in among)

    def _head_workspace(self) -> float:
        """Distances of hidden states, and logits in chunks."""
        objective, kept = self.objective, self.activations
        compared = len(objective.compared_layers(len(self.shape.layers)))
        distances = float(_FLOAT32 * compared * self.rows * self.shape.hidden)
        terms = objective.output_terms
        if not terms:
            return distances
        chunk = min(LOGIT_ELEMENTS, self.rows * self.shape.vocab)
        if self.setting.fused:  # in place, in the precision of the products
            held = self.setting.element * chunk * max(term.logit_copies[1] for term in terms)
        else:
            held = _FLOAT32 * chunk * max(term.logit_copies[0] for term in terms)
        rows = sum(term.positions(objective, kept.tokens) for term in terms) * kept.batch
        return distances + held + rows * self.shape.hidden * self.setting.element
