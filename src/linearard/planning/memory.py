"""Bytes of a training step: what it holds at its fullest moment, by part (docs/concepts/planner.md)."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

from linearard.counting.shapes import ModelShape
from linearard.counting.step import NOTHING, WHOLE, Step
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
    """What beside its work decides the memory of a step.

    Attributes:
        element: bytes of a weight and of an activation: 2 in mixed precision, 4 in float32.
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
    step: Step, setting: Setting, learned: Set[tuple[int, int]] | None = None
) -> Memory:
    """The fullest moment of a step of one batch.

    Args:
        step: the batch.
        setting: precision, optimizer, what waits.
        learned: projections that have optimizer state (`Step.learning`); default: those of this step.
    """
    moments = _Moments(step, setting, step.learning if learned is None else learned)
    return max(moments.all(), key=lambda memory: memory.peak)


def weight_bytes(shape: ModelShape, element: int, packed: bool = False) -> dict[str, float]:
    """Bytes of the model before anything is trained: `weights` and `adapter`."""
    copies = shape.frozen_copies  # of direct training, in `element`; the masters are in float32
    base = shape.base_parameters - copies
    saved = (element - PACKED) * shape.packable if packed else 0.0
    return {
        "weights": element * (base + copies) - saved,
        "adapter": float(_FLOAT32 * shape.trained_parameters),
    }


class _Moments:
    def __init__(self, step: Step, setting: Setting, stateful: Set[tuple[int, int]]) -> None:
        self.step, self.setting = step, setting
        self.activations = LayerActivations(step, setting.element)
        layers = range(len(step.shape.layers))
        self.gradients = [_FLOAT32 * self._weights(index, step.learning) for index in layers]
        self.stateful = sum(self._weights(index, stateful) for index in layers)
        self.casts = [self.activations.weight_casts(index) for index in layers]

    def all(self) -> Iterator[Memory]:
        yield from self._forward() if self.step.own_inputs else self._beside_teacher()
        found = sum(self.gradients)
        # The first steps of a kind have gradients of their own.
        beside = self.setting.recorded_elsewhere * found
        yield self._memory(
            "optimizer step",
            gradients=found * self._copies + beside,
            workspace=self.setting.update * self.stateful,
        )

    def _forward(self) -> Iterator[Memory]:
        step, kept, waiting = self.step, self.activations, self._waiting()
        layers = range(len(step.shape.layers))
        teacher = [kept.teacher(i) for i in layers]
        output = step.rows * step.shape.hidden * self.setting.element
        taught = output * (step.objective.needs_teacher_output + len(step.compared))
        away = self.setting.offload_teacher
        windows, window = step.teacher_reads
        if windows:
            yield self._memory(
                "teacher's forward",
                gradients=waiting,
                teacher=(_ON_THE_WAY * max(teacher) if away else sum(teacher)) + taught,
                workspace=kept.passing(step.batch * window),
            )
        if away and step.recompute:
            # Without recomputation, the student's backward pass keeps what came back from the host.
            last = max(step.related, default=0)
            teacher = [_ON_THE_WAY * teacher[i] if i == last else 0.0 for i in layers]
        inside, runs = [kept.student(i) for i in layers], step.student.runs
        again = [i in step.recomputed and runs[i] == WHOLE for i in layers]
        between = [output if again[i] else inside[i] for i in layers]
        forward = {
            "gradients": waiting,
            "weight casts": sum(self.casts[i] for i in layers if runs[i] != NOTHING),
            "activations": sum(between) + kept.output,
            "teacher": sum(teacher) + taught,
        }
        heads = self._head_workspace()
        if heads:
            yield self._memory("output loss", output=heads, **forward)
        whole = [i for i in layers if runs[i] == WHOLE]
        passing = kept.passing(step.rows, kept=bool(whole) and not again[whole[-1]])
        yield self._memory("end of the forward pass", workspace=passing, **forward)
        done = 0.0
        for i in reversed(layers):
            if step.student.needed[i] == NOTHING:
                continue
            # Recomputation finds the teacher's q, k, v in its observer, which lives to the end.
            compared = teacher if step.recompute else teacher[: i + 1]
            held = sum(self.casts[j] for j in layers[: i + 1] if j == i or not again[j])
            yield self._memory(
                f"backward pass of layer {i}",
                gradients=self._held(done + self.gradients[i]),
                activations=sum(between[: i + 1]) + (inside[i] if again[i] else 0.0),
                teacher=sum(compared),
                workspace=kept.differentiating(i),
                **{"weight casts": held},
            )
            done += self.gradients[i]

    def _beside_teacher(self) -> Iterator[Memory]:
        """One layer at a time; its gradients are what the step ends with, or copied by the backward pass."""
        kept, found = self.activations, sum(self.gradients)
        waiting = self._waiting()
        last = max(self.step.related)
        yield self._memory(
            "end of the forward pass",
            gradients=waiting + found,
            activations=kept.student(last),
            teacher=kept.teacher(last),
            workspace=kept.passing(self.step.rows),
            **{"weight casts": sum(self.casts[i] for i in self.step.related)},
        )
        yield self._memory("backward pass", gradients=waiting + self._copies * found)

    @property
    def _copies(self) -> int:
        """How often the gradients are there at the end: steps that may be recorded ask for them uncopied."""
        return 1 if self.step.own_inputs or self.setting.graphs else 2

    def _waiting(self) -> float:
        """Bytes of gradients that a batch finds when it begins."""
        return sum(self.gradients) * (self.setting.accumulated or self.setting.recorded_elsewhere)

    def _held(self, done: float) -> float:
        """Bytes of gradients when those of `done` bytes have been found in this batch."""
        waiting = self._waiting()
        # Before its recording, a batch's own are apart.
        return waiting + done if self.setting.graphs else max(waiting, done)

    def _memory(self, moment: str, **parts: float) -> Memory:
        shape = self.step.shape
        static = weight_bytes(shape, self.setting.element, self.step.packed)
        static["earlier stages"] = self.setting.remembered * static["adapter"]
        static["optimizer"] = self.setting.state * self.stateful
        parts["workspace"] = parts.get("workspace", 0.0) + _LIBRARIES
        if self.step.packed:  # a product unpacks its matrix
            parts["workspace"] += self.setting.element * shape.hidden * shape.intermediate
        return Memory(moment, {name: x for name, x in (static | parts).items() if x})

    def _weights(self, index: int, among: Set[tuple[int, int]]) -> int:
        """Trained weights of a layer that are among the named projections."""
        projections = enumerate(self.step.shape.layers[index].projections)
        rank = self.step.shape.rank
        return sum(p.adapter_weights(rank) for at, p in projections if (index, at) in among)

    def _head_workspace(self) -> float:
        """Distances of hidden states, and logits in chunks."""
        step, element = self.step, self.setting.element
        hidden, terms = step.rows * step.shape.hidden, step.objective.output_terms
        distances = float(_FLOAT32 * len(step.compared) * hidden)
        if not terms:
            return distances
        chunk = min(LOGIT_ELEMENTS, step.rows * step.shape.vocab)
        if step.fused:  # in place, in the precision of the products
            held = element * chunk * max(term.logit_copies[1] for term in terms)
        else:
            held = _FLOAT32 * chunk * max(term.logit_copies[0] for term in terms)
        rows = sum(term.positions(step.objective, step.tokens) for term in terms) * step.batch
        return distances + held + rows * step.shape.hidden * element
