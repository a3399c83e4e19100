"""What one layer keeps for the backward pass, tensor by tensor, in bytes.

Of the decoder layers of `transformers` under autocast, or of the fused ones of `linearard.model.fused`, with
fused attention kernels and the relation kernels of this package. `tests/planning` compares with the tensors
that a real step saves.
"""

from __future__ import annotations

from dataclasses import dataclass

from linearard.counting.shapes import LayerShape
from linearard.counting.step import NOTHING, WHOLE, Step

_FLOAT32 = 4


@dataclass(frozen=True)
class LayerActivations:
    """Bytes kept by a layer of one batch.

    Attributes:
        step: the batch.
        element: bytes of an activation.
    """

    step: Step
    element: int

    def teacher(self, index: int) -> float:
        """The teacher's q, k and v, as far as a relation of this layer reads them."""
        if index not in self.step.related:
            return 0.0
        layer = self.step.shape.layers[index]
        read = set("".join(self.step.objective.active_relations))
        heads = sum(layer.relation_heads(name) for name in read)
        if layer.joined and "v" in read:  # a part of what one projection made keeps all of it
            heads += layer.heads + layer.kv_heads
        return self.step.rows * self.element * heads * layer.head_dim

    def student(self, index: int) -> float:
        """All that the student's pass keeps of a layer."""
        needed = self.step.student.needed[index]
        if needed == NOTHING:
            return 0.0
        layer = self.step.shape.layers[index]
        a_row = self._inputs(layer, below=index > 0) + self._relations(index, layer)
        a_row += self.element * (layer.heads + 2 * layer.kv_heads) * layer.head_dim  # q, k, v
        if layer.joined:  # values are a part of what one projection made and keep all of it
            a_row += self.element * (layer.heads + layer.kv_heads) * layer.head_dim
        total = self.step.rows * a_row
        if needed == WHOLE:
            total += self.step.rows * self._behind_attention(layer)
        return total

    def weight_casts(self, index: int) -> float:
        """Trained weights in the precision of the products: LoRA's factors, or whole matrices."""
        if self.element == _FLOAT32:
            return 0.0
        rank, layer = self.step.shape.rank, self.step.shape.layers[index]
        if not rank and not index:  # no gradient goes below, so nothing keeps the matrices
            return 0.0
        trained = sum(p.adapter_weights(rank) for p in layer.projections if p.trained)
        return self.element * trained

    @property
    def output(self) -> float:
        """The last norm's float32 copy, and the hidden states behind it, where losses read them."""
        if self.step.student.last_output < len(self.step.shape.layers) - 1:
            return 0.0
        return self.step.rows * self.step.shape.hidden * (self._norm + self.element)

    def passing(self, rows: int, kept: bool = False) -> float:
        """What a layer holds for a moment in a forward pass: its MLP, or the float32 of a norm.

        Args:
            rows: of the pass.
            kept: whether the layer keeps what it needs for its backward pass, which then counts elsewhere.
        """
        hidden, inner = self.step.shape.hidden, self.step.shape.intermediate
        mlp = self.element * ((1 if kept else 3) * inner + 2 * hidden)
        if "norm" in self.step.fused_parts:
            return rows * mlp
        norm = 3 * _FLOAT32 * hidden + self.element * hidden
        return rows * max(mlp, norm)

    def differentiating(self, index: int) -> float:
        """Gradients that a layer's backward pass holds for a moment, beside what the layer kept."""
        layer = self.step.shape.layers[index]
        if self.step.student.needed[index] != WHOLE:
            return self.step.rows * self.element * layer.heads * layer.head_dim
        hidden, inner = self.step.shape.hidden, self.step.shape.intermediate
        return self.step.rows * self.element * (self._mlp * inner + 2 * hidden)

    @property
    def _mlp(self) -> int:
        """Tensors of the intermediate size that an MLP keeps."""
        return 2 if "mlp" in self.step.fused_parts else 3

    @property
    def _norm(self) -> int:
        """Of a norm's input, an element: the float32 copy; fused norms keep the input itself."""
        return self.element if "norm" in self.step.fused_parts else _FLOAT32

    def _inputs(self, layer: LayerShape, below: bool) -> float:
        """Norms before the attention and of heads, and what the adapters keep of their input, a row."""
        hidden = self.step.shape.hidden
        trained = [p for p in layer.projections if p.trained and p.feeds_attention]
        a_row = float(self._norm * layer.norms.before * below)
        if trained or below:
            a_row += self._norm * layer.norms.heads
        if not trained:
            return a_row
        if not self.step.shape.dropout:
            a_row += self.element * hidden
        elif (
            "attention" in self.step.fused_parts
        ):  # one draw for all; the mask has a byte an element
            a_row += hidden * (self.element + 1)
        else:
            a_row += len(trained) * hidden * (self.element + below)
        return a_row + self.element * self.step.shape.rank * len(trained)

    def _relations(self, index: int, layer: LayerShape) -> float:
        """Two logsumexps, each a sum of two float32 numbers, for teacher and student, a row."""
        if index not in self.step.related:
            return 0.0
        heads = sum(layer.relation_heads(name) for name in self.step.objective.active_relations)
        return 4 * _FLOAT32 * heads

    def _behind_attention(self, layer: LayerShape) -> float:
        """Attention's output and logsumexp, the norms behind it, and the MLP, a row.

        Of the MLP: what gate and up give, and the activated gate; fused, the first two.
        """
        attention = self.element * layer.heads * layer.head_dim + _FLOAT32 * layer.heads
        inner = self._mlp * self.element * self.step.shape.intermediate
        return attention + self._norm * layer.norms.behind + inner
