"""How far the two passes of a step run, how far a loss reads them, and which weights learn from it."""

from __future__ import annotations

from dataclasses import dataclass

from linearard.counting.shapes import ModelShape, Projection
from linearard.distill import ObjectiveConfig

WHOLE, FEEDS, NOTHING = "whole", "feeds", "nothing"  # how much of a layer; feeds: its q, k and v


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        runs_to: the layer in whose attention it ends; None: it runs to the end.
        output_of: the last layer whose output is read; -1: none.
        attention_of: the last layer whose q, k and v are read; -1: none.
    """

    runs_to: int | None
    output_of: int
    attention_of: int

    def runs(self, index: int) -> str:
        """How much of a layer is computed."""
        if self.runs_to is None or index < self.runs_to:
            return WHOLE
        return FEEDS if index == self.runs_to else NOTHING

    def needed(self, index: int) -> str:
        """How much of a layer a loss depends on."""
        if index <= max(self.output_of, self.attention_of - 1):
            return WHOLE
        return FEEDS if index == self.attention_of else NOTHING


def passes(shape: ModelShape, objective: ObjectiveConfig) -> tuple[Pass, Pass]:
    """The teacher's and the student's pass.

    Raises:
        RecipeError: the objective names layers the model does not have.
    """
    count = len(shape.layers)
    last = max(related_layers(shape, objective), default=-1)
    compared = max(objective.compared_layers(count), default=-1)

    def one(reads_output: bool) -> Pass:
        to_end = reads_output or compared >= 0
        return Pass(None if to_end else last, count - 1 if reads_output else compared, last)

    return one(objective.needs_teacher_output), one(objective.needs_output)


def related_layers(shape: ModelShape, objective: ObjectiveConfig) -> list[int]:
    """Layers whose relations count, in order."""
    if not objective.active_relations:
        return []
    return sorted(objective.weights_by_layer(len(shape.layers)))


def is_read(objective: ObjectiveConfig, projection: Projection) -> bool:
    """Whether a relation reads what this projection of q, k or v makes."""
    return bool(set("".join(objective.active_relations)) & set(projection.role))


def learning(shape: ModelShape, objective: ObjectiveConfig) -> set[tuple[int, int]]:
    """Trained projections that get a gradient: (layer, position among the layer's projections)."""
    _, student = passes(shape, objective)
    own = objective.inputs == "own"
    related = set(related_layers(shape, objective))
    found = set()
    for index, layer in enumerate(shape.layers):
        needed = student.needed(index) if own else (FEEDS if index in related else NOTHING)
        for position, projection in enumerate(layer.projections):
            reached = needed == WHOLE or (
                needed == FEEDS and projection.feeds_attention and is_read(objective, projection)
            )
            if projection.trained and reached:
                found.add((index, position))
    return found


def teacher_reads(objective: ObjectiveConfig, tokens: int, native_window: int) -> tuple[int, int]:
    """How many windows of how many tokens the teacher reads of one sequence; 0: it is not asked."""
    if not objective.needs_teacher:
        return 0, 0
    window = objective.teacher_window or native_window // 2 * 2
    if objective.needs_native_window or tokens <= window:
        return 1, tokens
    return 1 + -(-(tokens - window) // (window // 2)), window
