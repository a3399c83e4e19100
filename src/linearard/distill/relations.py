"""Relation terms, formed layer by layer while the student runs (method: docs/concepts/method.md).

For each counted layer and each relation X the term is the mean over valid rows and heads of
`KL(P_teacher || P_student)`, with P the row softmax of X X^T (q, k, v) or of Q K^T (qk). A layer's term
is formed the moment its attention runs, so no student tensor is kept beyond what attention itself keeps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from linearard.capture import LayerAttention, StopForward
from linearard.distill.config import ObjectiveConfig
from linearard.distill.teacher_offload import OffloadedTeacher
from linearard.ops.relation_kl import layer_relation_kl


class TeacherRelations:
    """Observer of the teacher's pass: keeps what the student will be compared with.

    Args:
        layers: those that count.
        relations: those that count.
        stop: end the pass at the last of the layers.
        offload: keep in host memory, which for a whole model is several GB of the GPU's.
    """

    def __init__(
        self,
        layers: Mapping[int, float],
        relations: Mapping[str, float],
        stop: bool,
        offload: bool = False,
    ):
        self._layers, self._stop = layers, stop
        self._host = OffloadedTeacher() if offload else None
        self._keep = {
            "query": "q" in relations or "qk" in relations,
            "key": "k" in relations or "qk" in relations,
            "value": "v" in relations,
        }
        self._kept: dict[int, dict[str, Tensor]] = {}

    def __call__(self, attention: LayerAttention) -> None:
        """Keep one layer's operands `[batch, heads, tokens, head_dim]`."""
        if attention.layer in self._layers:
            operands = {
                name: getattr(attention, name).detach() for name, kept in self._keep.items() if kept
            }
            if self._host is None:
                self._kept[attention.layer] = operands
            else:
                self._host.put(attention.layer, operands)
        if self._stop and attention.layer == max(self._layers):
            raise StopForward

    def of(self, layer: int) -> dict[str, Tensor]:
        """A layer's operands by name: `query`, `key` and `value`, as far as a relation reads them."""
        return self._kept[layer] if self._host is None else self._host.get(layer)

    def take(self, layer: int) -> dict[str, Tensor]:
        """The same, of which nothing is kept; not of those in host memory."""
        return self._kept.pop(layer)


class StudentRelations:
    """Observer of the student's pass: forms each layer's terms and adds them up.

    Attributes:
        terms: weighted mean over layers of each relation's KL, a scalar with gradient, in nats.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        layers: Mapping[int, float],
        teacher: TeacherRelations,
        mask: Tensor | None,
        stop: bool,
    ) -> None:
        self._config, self._layers, self._teacher = config, layers, teacher
        self._mask, self._stop = mask, stop
        self.terms: dict[str, Tensor] = {}
        self._formed: set[tuple[str, int]] = set()

    def __call__(self, attention: LayerAttention) -> None:
        """Form one layer's terms.

        Under gradient checkpointing a layer runs again in the backward pass; its terms are then formed
        again, so that autograd meets the same tensors, but not added a second time.
        """
        index = attention.layer
        if index in self._layers:
            teacher = self._teacher.of(index)
            terms = relation_terms(self._config, attention, teacher, self._mask)
            for name, term in terms.items():
                if (name, index) not in self._formed:
                    self._formed.add((name, index))
                    weighted = self._layers[index] * term
                    self.terms[name] = self.terms.get(name, 0.0) + weighted
        if self._stop and index == max(self._layers):
            raise StopForward


def relation_terms(
    config: ObjectiveConfig,
    student: LayerAttention,
    teacher: Mapping[str, Tensor],
    mask: Tensor | None,
) -> dict[str, Tensor]:
    """One layer's relation KL by relation, each a scalar in nats.

    Args:
        config: which relations, at which temperature, normalised how.
        student: the layer's operands, with gradient.
        teacher: the teacher's `query`, `key` and `value`, as far as a relation reads them.
        mask: bool `[batch, tokens]`, False for padding, or None.
    """
    operands: dict[str, tuple[Tensor, ...]] = {}
    for name in config.active_relations:
        if name == "qk":
            operands[name] = (teacher["query"], teacher["key"], student.query, student.key)
        else:
            read = {"q": "query", "k": "key", "v": "value"}[name]
            operands[name] = (teacher[read], getattr(student, read))
    # The operands arrive in their final precision; autocast must not lower it inside the loss.
    with torch.autocast(student.query.device.type, enabled=False):
        terms = layer_relation_kl(
            operands,
            causal=True,
            window=student.sliding_window,
            scale={"qk": student.scaling} if "qk" in operands else None,
            temperature=config.temperature,
            mask=mask,
            implementation=config.implementation,
        )
        if config.normalisation == "paper":
            for name in terms.keys() - {"qk"}:
                own = operands[name][1]
                heads = own.shape[1] / (1 if name == "q" else student.repeats)
                terms[name] = terms[name] * (heads / student.query.shape[1])
    return terms
