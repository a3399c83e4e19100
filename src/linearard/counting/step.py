"""One batch of a training step: what decides all that it computes, and how far each of its passes runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from linearard.counting.shapes import ModelShape, Projection
from linearard.distill import ObjectiveConfig

WHOLE, FEEDS, NOTHING = "whole", "feeds", "nothing"  # how much of a layer; feeds: its q, k and v


@dataclass(frozen=True)
class Pass:
    """One forward pass, layer by layer: `WHOLE`, `FEEDS` or `NOTHING`.

    Attributes:
        runs: how much of a layer is computed.
        needed: how much of a layer a loss depends on.
        last_output: the last layer whose output is read; -1: none.
    """

    runs: tuple[str, ...]
    needed: tuple[str, ...]
    last_output: int


@dataclass(frozen=True)
class Step:
    """One batch, forward and backward.

    Attributes:
        shape: the model and its adapter.
        objective: the terms of the loss.
        tokens, batch: of a sequence; sequences.
        native_window: what the teacher reads at once where logit KL is formed on longer windows.
        fused: whether layers that `linearard.model.fused` knows run so: on a GPU in half precision.
        packed: whether base weights are in 4 bits, and unpacked in every pass.
        recompute: gradient checkpointing.
        kept_layers: how many of the last layers it leaves alone.

    Raises:
        RecipeError: the objective names layers the model does not have; at the first look at its layers.
    """

    shape: ModelShape
    objective: ObjectiveConfig
    tokens: int
    batch: int
    native_window: int
    fused: bool = False
    packed: bool = False
    recompute: bool = False
    kept_layers: int = 0

    def __hash__(self) -> int:
        """Of what differs between steps of one plan: an objective has no hash, and a shape's takes long."""
        return hash((self.tokens, self.batch, self.native_window, self.recompute, self.kept_layers))

    @property
    def rows(self) -> int:
        """Tokens of all sequences."""
        return self.batch * self.tokens

    @property
    def own_inputs(self) -> bool:
        """Whether the student runs through its own depth, and not beside the teacher."""
        return self.objective.inputs == "own"

    @property
    def fused_parts(self) -> frozenset[str]:
        """Which of `norm`, `attention` and `mlp` run in a fused form."""
        return self.shape.fused if self.fused else frozenset()

    @property
    def recomputed(self) -> range:
        """Layers that the backward pass may compute again."""
        again = self.recompute and self.own_inputs
        return range(max(0, len(self.shape.layers) - self.kept_layers) if again else 0)

    @cached_property
    def teacher_reads(self) -> tuple[int, int]:
        """How many windows of how many tokens the teacher reads of one sequence; 0: it is not asked."""
        objective, tokens = self.objective, self.tokens
        if not objective.needs_teacher:
            return 0, 0
        window = objective.teacher_window or self.native_window // 2 * 2
        if objective.needs_native_window or tokens <= window:
            return 1, tokens
        return 1 + -(-(tokens - window) // (window // 2)), window

    @cached_property
    def related(self) -> list[int]:
        """Layers whose relations count, in order."""
        if not self.objective.active_relations:
            return []
        return sorted(self.objective.weights_by_layer(len(self.shape.layers)))

    @cached_property
    def compared(self) -> list[int]:
        """Layers whose hidden states are compared, in order."""
        return self.objective.compared_layers(len(self.shape.layers))

    @cached_property
    def teacher(self) -> Pass:
        """The teacher's pass."""
        return self._pass(self.objective.needs_teacher_output)

    @cached_property
    def student(self) -> Pass:
        """The student's pass, where it has one of its own."""
        return self._pass(self.objective.needs_output)

    @cached_property
    def learning(self) -> frozenset[tuple[int, int]]:
        """Trained projections that get a gradient: (layer, position among the layer's projections)."""
        found = set()
        for index, layer in enumerate(self.shape.layers):
            beside = FEEDS if index in self.related else NOTHING
            needed = self.student.needed[index] if self.own_inputs else beside
            for position, projection in enumerate(layer.projections):
                read = projection.feeds_attention and self.is_read(projection)
                if projection.trained and (needed == WHOLE or (needed == FEEDS and read)):
                    found.add((index, position))
        return frozenset(found)

    def is_read(self, projection: Projection) -> bool:
        """Whether a relation reads what this projection of q, k or v makes."""
        return bool(set("".join(self.objective.active_relations)) & set(projection.role))

    def _pass(self, reads_output: bool) -> Pass:
        layers = range(len(self.shape.layers))
        attention = max(self.related, default=-1)
        output = len(layers) - 1 if reads_output else max(self.compared, default=-1)

        def extent(index: int, last: int) -> str:
            return WHOLE if index <= last else FEEDS if index == attention else NOTHING

        return Pass(  # one whose output is read runs to the end, another to the last attention
            tuple(extent(i, layers[-1] if output >= 0 else attention - 1) for i in layers),
            tuple(extent(i, max(output, attention - 1)) for i in layers),
            output,
        )
