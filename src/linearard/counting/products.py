"""Every matrix product of a training step, from the sizes of the model and the objective."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from linearard.counting.shapes import LayerShape, Projection
from linearard.counting.step import FEEDS, NOTHING, WHOLE, Step


@dataclass(frozen=True)
class Product:
    """Matrix products of one kind in one place of a step.

    Attributes:
        phase: `teacher`, `student`, `backward` or `recompute`.
        kind: `gemm`, `lora`, `head`, `attention` or `relation`.
        flops: two a multiply-add.
        rows, inner, columns: of one product `[rows, inner] @ [inner, columns]`; for attention and
            relations: heads times batch, head_dim, tokens.
        counted: whether the loss or a gradient needs it; else it is computed a second time, or in vain.
        layer: index; -1 for the LM head.
        windowed: whether attention keeps to a sliding window shorter than the sequence.
    """

    phase: str
    kind: str
    flops: int
    rows: int
    inner: int
    columns: int
    counted: bool
    layer: int
    windowed: bool = False


@lru_cache(maxsize=64)  # plans of one recipe ask for the same steps again and again
def step_products(step: Step) -> tuple[Product, ...]:
    """All products of one batch, forward and backward.

    Raises:
        RecipeError: the objective names layers the model does not have.
    """
    return tuple(_Products(step).all())


@lru_cache(maxsize=64)
def alike_products(step: Step) -> Counter[Product]:
    """How many products of one batch are the same but for their layer, which is left at 0."""
    return Counter(replace(product, layer=0) for product in step_products(step))


def visible_pairs(tokens: int, window: int | None) -> int:
    """Pairs (i, j) with `i - window < j <= i` of a sequence."""
    if window is None or window >= tokens:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window


class _Products:
    def __init__(self, step: Step) -> None:
        self.step, self.shape, self.objective = step, step.shape, step.objective
        self.batch, self.tokens, self.rows = step.batch, step.tokens, step.rows
        # Under checkpointing peft makes the embeddings want a gradient, which nothing uses.
        self.to_embedding = step.recompute and step.own_inputs and step.shape.rank > 0

    def all(self) -> Iterator[Product]:
        if self.step.teacher_reads[0]:
            yield from self.teacher()
        yield from self.student() if self.step.own_inputs else self.beside_teacher()
        yield from self.relations()
        yield from self.head()

    def teacher(self) -> Iterator[Product]:
        windows, tokens = self.step.teacher_reads
        beside_it, reach = not self.step.own_inputs, self.step.teacher
        rows = self.batch * windows
        for index, layer in enumerate(self.shape.layers):
            runs, needed = reach.runs[index], reach.needed[index]
            for projection in layer.projections:
                feeds = projection.feeds_attention
                # With teacher inputs a hook behind the last attention ends the pass.
                beside = beside_it and projection.role == "attention output"
                if runs == WHOLE or (runs == FEEDS and (feeds or beside)):
                    counted = needed == WHOLE or (feeds and needed == FEEDS)
                    yield _gemm("teacher", index, projection, rows * tokens, counted)
            if runs == WHOLE or (runs == FEEDS and beside_it):
                counted = needed == WHOLE
                yield _attention("teacher", index, layer, rows, tokens, 2, counted)

    def student(self) -> Iterator[Product]:
        alive = False  # whether a gradient is wanted for what the next projection reads
        for index, layer in enumerate(self.shape.layers):
            runs, needed = self.step.student.runs[index], self.step.student.needed[index]
            # The layer in which a pass ends is cut short and never computed again.
            again = index in self.step.recomputed and runs == WHOLE and needed != NOTHING
            for group in _groups(layer, runs):
                feeds = group[0].feeds_attention
                counted = needed == WHOLE or (feeds and needed == FEEDS)
                for projection in group:
                    yield _gemm("student", index, projection, self.rows, counted)
                    # Nothing reads what a layer's last product gives: recomputation stops before, but
                    # a fused MLP is computed whole.
                    if again and ("mlp" in self.step.fused_parts or projection.role != "mlp out"):
                        yield _gemm("recompute", index, projection, self.rows, False)
                    learns = counted and (needed == WHOLE or self.step.is_read(projection))
                    if projection.trained:
                        yield from self._adapter(index, projection, counted, again, alive, learns)
                    if learns and (alive or self.to_embedding):
                        yield _gemm("backward", index, projection, self.rows, alive)
                alive = alive or any(projection.trained for projection in group)
                if feeds and runs == WHOLE:
                    yield from self._attention(index, layer, needed == WHOLE, again, alive)

    def beside_teacher(self) -> Iterator[Product]:
        for index in self.step.related:
            for projection in self.shape.layers[index].projections:
                if projection.feeds_attention:
                    # Fused, it takes the teacher's product of the same input.
                    if "attention" not in self.step.fused_parts:
                        yield _gemm("student", index, projection, self.rows, False)
                    if projection.trained:
                        learns = self.step.is_read(projection)
                        yield from self._adapter(index, projection, True, False, False, learns)

    def relations(self) -> Iterator[Product]:
        for index in self.step.related:
            layer = self.shape.layers[index]
            pairs = visible_pairs(self.tokens, layer.window)
            again = index in self.step.recomputed and self.step.student.runs[index] == WHOLE
            for relation in self.objective.active_relations:
                heads = self.batch * layer.relation_heads(relation)
                flops = 2 * 2 * heads * pairs * layer.head_dim
                sizes = ("relation", flops, heads, layer.head_dim, self.tokens)
                yield Product("student", *sizes, True, index)
                yield Product("backward", *sizes, True, index)
                yield Product("backward", *sizes, False, index)  # the scores, once more
                if again:
                    yield Product("recompute", *sizes, False, index)

    def head(self) -> Iterator[Product]:
        """The LM head; where two terms read the same logits, they are formed twice."""
        objective, reads = self.objective, []
        for term in objective.output_terms:
            rows = (term.positions(objective, self.tokens) - term.foretells) * self.batch
            if term.reads_teacher:
                yield self._head("teacher", rows, True)
            reads.append(rows)
        for number, rows in enumerate(sorted(reads, reverse=True)):
            yield self._head("student", rows, number == 0)
            yield self._head("backward", rows, number == 0)

    def _adapter(
        self,
        index: int,
        projection: Projection,
        counted: bool,
        again: bool,
        alive: bool,
        learns: bool,
    ) -> Iterator[Product]:
        """What an adapter adds to a projection, and the gradients of its weights."""
        rows, rank = self.rows, self.shape.rank
        inputs, outputs = projection.inputs, projection.outputs
        if not rank:  # direct: the gradient of the matrix itself
            if learns:
                yield _product("backward", "gemm", outputs, rows, inputs, index, True)
            return
        for sizes in ((rows, inputs, rank), (rows, rank, outputs)):
            yield _product("student", "lora", *sizes, index, counted)
            if again:
                yield _product("recompute", "lora", *sizes, index, False)
        if learns:
            yield _product("backward", "lora", outputs, rows, rank, index, True)
            yield _product("backward", "lora", rows, outputs, rank, index, True)
        # Fused, A's products are one for q, k and v.
        if learns or (counted and "attention" in self.step.fused_parts):
            yield _product("backward", "lora", rank, rows, inputs, index, learns)
            if alive or self.to_embedding:
                yield _product("backward", "lora", rows, rank, inputs, index, alive and learns)

    def _attention(
        self, index: int, layer: LayerShape, counted: bool, again: bool, alive: bool
    ) -> Iterator[Product]:
        sizes = (index, layer, self.batch, self.tokens)
        yield _attention("student", *sizes, 2, counted)
        if again:
            yield _attention("recompute", *sizes, 2, False)
        if counted and (alive or self.to_embedding):
            yield _attention("backward", *sizes, 4, alive)
            yield _attention("backward", *sizes, 1, False)  # the scores, once more

    def _head(self, phase: str, rows: int, counted: bool) -> Product:
        hidden, vocab = self.shape.hidden, self.shape.vocab
        inner, columns = (vocab, hidden) if phase == "backward" else (hidden, vocab)
        return _product(phase, "head", rows, inner, columns, -1, counted)


def _groups(layer: LayerShape, runs: str) -> Iterator[list[Projection]]:
    """The projections that read the same tensor, in the order of the forward pass."""
    roles = {WHOLE: ("attention output", "mlp in", "mlp out"), FEEDS: (), NOTHING: ()}[runs]
    if runs != NOTHING:
        yield [p for p in layer.projections if p.feeds_attention]
    for role in roles:
        yield [p for p in layer.projections if p.role == role]


def _gemm(phase: str, index: int, projection: Projection, rows: int, counted: bool) -> Product:
    inner, columns = projection.inputs, projection.outputs
    if phase == "backward":
        inner, columns = columns, inner
    return _product(phase, "gemm", rows, inner, columns, index, counted)


def _attention(
    phase: str, index: int, layer: LayerShape, rows: int, tokens: int, products: int, counted: bool
) -> Product:
    heads, pairs = rows * layer.heads, visible_pairs(tokens, layer.window)
    flops = 2 * products * heads * pairs * layer.head_dim
    windowed = layer.window is not None and layer.window < tokens
    sizes = (heads, layer.head_dim, tokens)
    return Product(phase, "attention", flops, *sizes, counted, index, windowed)


def _product(
    phase: str, kind: str, rows: int, inner: int, columns: int, layer: int, counted: bool
) -> Product:
    return Product(phase, kind, 2 * rows * inner * columns, rows, inner, columns, counted, layer)
