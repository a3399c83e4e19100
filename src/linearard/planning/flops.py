"""Floating-point operations of a training step: what has to be computed, and what is.

Counting convention of `step_flops`, for a model-FLOP utilisation of `step_flops / seconds / peak`:

- Matrix products only, two operations a multiply-add. Elementwise work, norms, RoPE, softmax, the
  embedding, clipping and the optimizer count nothing.
- The teacher's forward and the student's forward, each as far as a term of the loss reads it: a pass that
  ends at the last counted attention ends at that layer's queries, keys and values.
- Backward through a frozen matrix: the gradient of its input, one product; through a trained one (LoRA's
  two factors, or direct training): that of the weight as well. Nothing below the first trained matrix.
- Attention: the pairs that a causal mask and a sliding window leave; two products forward, four backward.
- A relation: the same pairs; the scores of teacher and student forward, two products backward (the
  gradient of rows and of columns).
- LM head: the counted positions; teacher, student and the gradient of the student's hidden states.
- Nothing that is computed a second time: layers under gradient checkpointing, scores in the backward pass
  of attention and of relations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from linearard.distill import ObjectiveConfig
from linearard.model import AdapterConfig
from linearard.planning.shapes import LayerShape, ModelShape, Projection


@dataclass(frozen=True)
class Product:
    """Matrix products of one kind in one place of a step.

    Attributes:
        phase: `teacher`, `student`, `backward` or `recompute`.
        kind: `gemm`, `lora`, `head`, `attention` or `relation`.
        flops: two a multiply-add.
        rows, inner, columns: of one product `[rows, inner] @ [inner, columns]`; for attention and
            relations: heads times batch, head_dim, tokens.
        counted: whether the model needs it; else it is computed a second time.
        layer: index; -1 for the LM head.
    """

    phase: str
    kind: str
    flops: int
    rows: int
    inner: int
    columns: int
    counted: bool = True
    layer: int = -1


def step_flops(
    config: Any,
    objective: ObjectiveConfig,
    tokens: int,
    batch: int,
    *,
    adapter: AdapterConfig | None = None,
    native_window: int | None = None,
) -> int:
    """Operations that one batch needs, forward and backward: see the convention above.

    An optimizer step of several batches (`gradient_accumulation_steps`, processes) needs their sum.

    Args:
        config: the model's `transformers` configuration.
        objective: the terms of the loss.
        tokens: of a sequence.
        batch: sequences.
        adapter: what is trained; default: the paper's LoRA of rank 1024 on q, k and v.
        native_window: tokens the teacher reads at once where logit KL is formed on longer windows;
            default: the configuration's `max_position_embeddings`.

    Raises:
        ModelError: a model whose layers are of an unknown kind.
        RecipeError: the objective names layers the model does not have.
    """
    shape = ModelShape.of(config, AdapterConfig() if adapter is None else adapter)
    native = native_window or int(config.get_text_config().max_position_embeddings)
    found = step_products(shape, objective, tokens, batch, native_window=native)
    return sum(product.flops for product in found if product.counted)


def step_products(
    shape: ModelShape,
    objective: ObjectiveConfig,
    tokens: int,
    batch: int,
    *,
    native_window: int,
    recompute: bool = False,
) -> list[Product]:
    """All matrix products of one batch, those computed a second time included.

    Args:
        shape: the model.
        objective, tokens, batch, native_window: see `step_flops`.
        recompute: gradient checkpointing.
    """
    return list(_Step(shape, objective, tokens, batch, native_window, recompute).products())


def visible_pairs(tokens: int, window: int | None) -> int:
    """Pairs (i, j) with `i - window < j <= i` of a sequence."""
    if window is None or window >= tokens:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window


def teacher_reads(objective: ObjectiveConfig, tokens: int, native_window: int) -> tuple[int, int]:
    """How many windows of how many tokens the teacher reads of one sequence."""
    if not objective.needs_teacher:
        return 0, 0
    window = objective.teacher_window or native_window // 2 * 2
    if objective.needs_native_window or tokens <= window:
        return 1, tokens
    return 1 + -(-(tokens - window) // (window // 2)), window


@dataclass
class _Step:
    shape: ModelShape
    objective: ObjectiveConfig
    tokens: int
    batch: int
    native_window: int
    recompute: bool

    def __post_init__(self) -> None:
        objective, count = self.objective, len(self.shape.layers)
        self.counted = objective.weights_by_layer(count) if objective.active_relations else {}
        compared = objective.compared_layers(count)
        self.student_to_end = objective.needs_output or bool(compared)
        self.teacher_to_end = objective.logit_weight > 0 or bool(compared)
        # A layer's hidden state is what the layer leaves: the passes run to the end of the decoder.
        self.last = max(self.counted, default=count - 1)
        self.rows = self.batch * self.tokens

    def products(self) -> Iterator[Product]:
        yield from self.teacher()
        if self.objective.inputs == "teacher":
            yield from self.beside_teacher()
        else:
            yield from self.student()
        yield from self.relations()
        yield from self.head()

    def teacher(self) -> Iterator[Product]:
        windows, tokens = teacher_reads(self.objective, self.tokens, self.native_window)
        if not windows:
            return
        stop = None if self.teacher_to_end else self.last
        rows = self.batch * windows
        for index, layer in self._layers(stop):
            for projection in self._reached(layer, index == stop):
                yield self._gemm("teacher", index, projection, rows * tokens)
            if index != stop:
                yield self._attention("teacher", index, layer, rows, tokens, 2)

    def student(self) -> Iterator[Product]:
        stop = None if self.student_to_end else self.last
        alive = False  # whether a gradient is wanted for what the next projection reads
        for index, layer in self._layers(stop):
            ends_here = index == stop
            # The layer in which a pass ends is cut short and never computed again.
            again = self.recompute and not ends_here
            for group in self._groups(layer, ends_here):
                trained = any(projection.trained for projection in group)
                for projection in group:
                    yield from self._projected(index, projection, alive, again, ends_here)
                if group[0].feeds_attention and not ends_here:
                    alive = alive or trained
                    yield self._attention("student", index, layer, self.batch, self.tokens, 2)
                    if again:
                        yield self._attention(
                            "recompute", index, layer, self.batch, self.tokens, 2, counted=False
                        )
                    if alive:
                        yield from self._attention_backward(index, layer)
                alive = alive or trained

    def beside_teacher(self) -> Iterator[Product]:
        for index in self.counted:
            layer = self.shape.layers[index]
            for projection in self._reached(layer, ends_here=True):
                yield self._gemm("student", index, projection, self.rows)
                if projection.trained and self._learns(projection):
                    yield from self._trained(index, projection, alive=False)

    def relations(self) -> Iterator[Product]:
        for index in self.counted:
            layer = self.shape.layers[index]
            pairs = visible_pairs(self.tokens, layer.window)
            for relation in self.objective.active_relations:
                heads = self.batch * layer.relation_heads(relation)
                flops = 2 * 2 * heads * pairs * layer.head_dim
                sizes = (heads, layer.head_dim, self.tokens)
                yield Product("student", "relation", flops, *sizes, layer=index)
                yield Product("backward", "relation", flops, *sizes, layer=index)
                # The scores of both models, again in the backward pass.
                yield Product("backward", "relation", flops, *sizes, counted=False, layer=index)
                own_inputs = self.objective.inputs == "own"
                if self.recompute and own_inputs and (index != self.last or self.student_to_end):
                    yield Product(
                        "recompute", "relation", flops, *sizes, counted=False, layer=index
                    )

    def head(self) -> Iterator[Product]:
        """The LM head; where two terms read the same logits, they are formed twice."""
        objective = self.objective
        reads: list[int] = []
        if objective.logit_weight:
            rows = min(objective.logit_positions or self.tokens, self.tokens) * self.batch
            yield self._head("teacher", rows, True)
            reads.append(rows)
        reads += [(self.tokens - 1) * self.batch] * bool(objective.lm_weight)
        reads += [(self.tokens - 1) * self.batch] * bool(objective.recall_weight)
        reads.sort(reverse=True)
        for number, rows in enumerate(reads):
            yield self._head("student", rows, number == 0)
            yield self._head("backward", rows, number == 0)

    def _layers(self, stop: int | None) -> Iterator[tuple[int, LayerShape]]:
        end = len(self.shape.layers) if stop is None else stop + 1
        return enumerate(self.shape.layers[:end])

    def _reached(self, layer: LayerShape, ends_here: bool) -> list[Projection]:
        return [p for p in layer.projections if p.feeds_attention or not ends_here]

    def _groups(self, layer: LayerShape, ends_here: bool) -> Iterator[list[Projection]]:
        """The projections that read the same tensor, in the order of the forward pass."""
        reached = self._reached(layer, ends_here)
        yield [p for p in reached if p.feeds_attention]
        for role in () if ends_here else ("attention output", "mlp in", "mlp out"):
            yield [p for p in reached if p.role == role]

    def _learns(self, projection: Projection) -> bool:
        """Whether a relation of the layer in which a pass ends gives this projection a gradient."""
        read = set("".join(self.objective.active_relations))
        return bool(read & set(projection.role))

    def _projected(
        self, index: int, projection: Projection, alive: bool, again: bool, ends_here: bool
    ) -> Iterator[Product]:
        yield self._gemm("student", index, projection, self.rows)
        if again:
            yield self._gemm("recompute", index, projection, self.rows, counted=False)
        reaches = self._learns(projection) if ends_here else True
        if projection.trained:
            yield from self._trained(index, projection, alive, again, reaches)
        if alive and reaches:
            yield self._gemm("backward", index, projection, self.rows)

    def _trained(
        self,
        index: int,
        projection: Projection,
        alive: bool,
        again: bool = False,
        reaches: bool = True,
    ) -> Iterator[Product]:
        """What an adapter adds: its own products, the gradients of its weights."""
        rows, inputs, outputs, rank = (
            self.rows,
            projection.inputs,
            projection.outputs,
            self.shape.rank,
        )
        if not rank:  # direct: the gradient of the matrix itself
            if reaches:
                yield _product("backward", "gemm", inputs, rows, outputs, index)
            return
        down, up = (rows, inputs, rank), (rows, rank, outputs)
        for sizes in (down, up):
            yield _product("student", "lora", *sizes, index)
            if again:
                yield _product("recompute", "lora", *sizes, index, counted=False)
        if reaches:
            yield _product("backward", "lora", rank, rows, outputs, index)
            yield _product("backward", "lora", rows, outputs, rank, index)
            yield _product("backward", "lora", inputs, rows, rank, index)
            if alive:
                yield _product("backward", "lora", rows, rank, inputs, index)

    def _gemm(
        self, phase: str, index: int, projection: Projection, rows: int, counted: bool = True
    ) -> Product:
        inner, columns = projection.inputs, projection.outputs
        if phase == "backward":
            inner, columns = columns, inner
        return _product(phase, "gemm", rows, inner, columns, index, counted=counted)

    def _attention(
        self,
        phase: str,
        index: int,
        layer: LayerShape,
        rows: int,
        tokens: int,
        products: int,
        counted: bool = True,
    ) -> Product:
        heads, pairs = rows * layer.heads, visible_pairs(tokens, layer.window)
        flops = 2 * products * heads * pairs * layer.head_dim
        return Product(
            phase, "attention", flops, heads, layer.head_dim, tokens, counted, layer=index
        )

    def _attention_backward(self, index: int, layer: LayerShape) -> Iterator[Product]:
        yield self._attention("backward", index, layer, self.batch, self.tokens, 4)
        yield self._attention("backward", index, layer, self.batch, self.tokens, 1, counted=False)

    def _head(self, phase: str, rows: int, counted: bool) -> Product:
        hidden, vocab = self.shape.hidden, self.shape.vocab
        inner, columns = (vocab, hidden) if phase == "backward" else (hidden, vocab)
        return _product(phase, "head", rows, inner, columns, -1, counted=counted)


def _product(
    phase: str, kind: str, rows: int, inner: int, columns: int, layer: int, counted: bool = True
) -> Product:
    flops = 2 * rows * inner * columns
    return Product(phase, kind, flops, rows, inner, columns, counted, layer)
