"""What one layer keeps for the backward pass, tensor by tensor, in bytes.

Of the decoder layers of `transformers` under autocast, with the fused attention kernels and the relation
kernels of this package. `tests/planning` compares with the tensors that a real step saves.
"""

from __future__ import annotations

from dataclasses import dataclass

from linearard.distill import ObjectiveConfig
from linearard.planning.passes import NOTHING, WHOLE, Pass, related_layers
from linearard.planning.shapes import LayerShape, ModelShape

_FLOAT32 = 4


@dataclass(frozen=True)
class Kept:
    """Bytes kept by a layer of one batch.

    Attributes:
        shape, objective: model and loss.
        tokens, batch: of a sequence; sequences.
        element: bytes of an activation.
    """

    shape: ModelShape
    objective: ObjectiveConfig
    tokens: int
    batch: int
    element: int

    def teacher(self, index: int) -> float:
        """The teacher's q, k and v, as far as a relation of this layer reads them."""
        layer, read = self.shape.layers[index], set("".join(self.objective.active_relations))
        heads = sum(layer.relation_heads(name) for name in read)
        return self._rows * self.element * heads * layer.head_dim

    def student(self, index: int, reach: Pass) -> float:
        """All that the student's pass keeps of a layer."""
        needed = reach.needed(index)
        if needed == NOTHING:
            return 0.0
        layer = self.shape.layers[index]
        a_row = self._inputs(layer, below=index > 0) + self._relations(index, layer)
        a_row += self.element * (layer.heads + 2 * layer.kv_heads) * layer.head_dim  # q, k, v
        total = self._rows * a_row
        if needed == WHOLE:
            total += self._rows * self._behind_attention(layer) + self._masked(layer)
        return total

    def weight_casts(self, index: int) -> float:
        """Trained weights in the precision of the products: LoRA's factors, or whole matrices."""
        if self.element == _FLOAT32:
            return 0.0
        rank, layer = self.shape.rank, self.shape.layers[index]
        if not rank and not index:  # no gradient goes below, so nothing keeps the matrices
            return 0.0
        trained = sum(p.adapter_weights(rank) for p in layer.projections if p.trained)
        return self.element * trained

    def output(self, reach: Pass) -> float:
        """The last norm's float32 copy, and the hidden states behind it, where losses read them."""
        last = len(self.shape.layers) - 1
        if reach.runs_to is not None or reach.output_of < last:
            return 0.0
        return self._rows * self.shape.hidden * (_FLOAT32 + self.element)

    def passing(self, rows: int) -> float:
        """What a layer holds for a moment in a forward pass: its MLP, or the float32 of a norm."""
        hidden, inner = self.shape.hidden, self.shape.intermediate
        mlp = self.element * (3 * inner + 2 * hidden)
        norm = 3 * _FLOAT32 * hidden + self.element * hidden
        return rows * max(mlp, norm)

    def differentiating(self, index: int, reach: Pass) -> float:
        """Gradients that a layer's backward pass holds for a moment, beside what the layer kept."""
        layer = self.shape.layers[index]
        if reach.needed(index) != WHOLE:
            return self._rows * self.element * layer.heads * layer.head_dim
        hidden, inner = self.shape.hidden, self.shape.intermediate
        return self._rows * self.element * (3 * inner + 2 * hidden)

    @property
    def _rows(self) -> int:
        return self.tokens * self.batch

    def _inputs(self, layer: LayerShape, below: bool) -> float:
        """The norm before the attention, and what the adapters keep of its output, a row."""
        hidden = self.shape.hidden
        trained = [p for p in layer.projections if p.trained and p.feeds_attention]
        a_row = float(_FLOAT32 * hidden * below)
        if self.shape.dropout:  # each projection drops by itself; its mask has a byte an element
            a_row += len(trained) * hidden * (self.element + below)
        elif trained:
            a_row += self.element * hidden
        return a_row + self.element * self.shape.rank * len(trained)

    def _relations(self, index: int, layer: LayerShape) -> float:
        """Two logsumexps, each a sum of two float32 numbers, for teacher and student, a row."""
        if index not in related_layers(self.shape, self.objective):
            return 0.0
        heads = sum(layer.relation_heads(name) for name in self.objective.active_relations)
        return 4 * _FLOAT32 * heads

    def _behind_attention(self, layer: LayerShape) -> float:
        """Attention's output and logsumexp, the second norm, and three tensors of the MLP, a row."""
        attention = self.element * layer.heads * layer.head_dim + _FLOAT32 * layer.heads
        return attention + _FLOAT32 * self.shape.hidden + 3 * self.element * self.shape.intermediate

    def _masked(self, layer: LayerShape) -> float:
        """Where a sliding window is shorter than the text, a mask, and keys and values repeated."""
        if layer.window is None or layer.window >= self.tokens:
            return 0.0
        repeated = 2 * (layer.heads - layer.kv_heads) * layer.head_dim
        return self.element * (self.batch * self.tokens**2 + self._rows * repeated)
