"""What restoration did to the relations: KL to the original by layer and head, and one head to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from linearard.capture import LayerAttention, StopForward
from linearard.distill.config import RELATIONS
from linearard.distill.relations import TeacherRelations
from linearard.model import ChunkedCausalLM, RestorableModel
from linearard.model.view_names import ORIGINAL, RESTORED, STRETCHED
from linearard.ops.relation_kl import attention_kl, relation_kl

_BINS = 48  # of an attention map, along queries and along keys


@dataclass
class RelationProfile:
    """Relation KL to the original, in nats, before and after restoration.

    Attributes:
        heads: view (stretched, restored) -> relation -> layer -> KL of each head. Self-relations of keys and
            values have as many heads as there are key heads.
    """

    heads: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)

    @property
    def layers(self) -> dict[str, dict[str, list[float]]]:
        """The same as means over heads."""
        return {
            view: {name: [sum(kl) / len(kl) for kl in layers] for name, layers in by_name.items()}
            for view, by_name in self.heads.items()
        }

    def most_changed(self) -> tuple[int, int]:
        """Layer (counted among those with attention) and head that stretching changed the most."""
        found = self.heads[STRETCHED]["qk"]
        places = [(layer, head) for layer, heads in enumerate(found) for head in range(len(heads))]
        return max(places, key=lambda place: found[place[0]][place[1]])


@torch.no_grad()
def relation_profile(
    restorable: RestorableModel,
    blocks: Iterable[Tensor],
    relations: Sequence[str] = RELATIONS,
) -> RelationProfile:
    """Relation KL to the original on some text. Leaves the model in evaluation mode.

    Args:
        restorable: the model.
        blocks: int64 `[batch, tokens]` each, on any device.
        relations: which relations to measure.
    """
    lm = ChunkedCausalLM(restorable.model.eval())
    every = dict.fromkeys(restorable.tap.modules, 1.0)
    sums: dict[str, dict[str, dict[int, Tensor]]] = {}
    count = 0
    for block in blocks:
        count += 1
        teacher = TeacherRelations(every, dict.fromkeys(relations, 1.0), stop=True)
        with restorable.view(ORIGINAL), restorable.tap.observing(teacher):
            lm.hidden(block)
        for view in (STRETCHED, RESTORED):
            found = sums.setdefault(view, {name: {} for name in relations})
            observer = _Heads(teacher, found, last=max(every))
            with restorable.view(view), restorable.tap.observing(observer):
                lm.hidden(block)
    return RelationProfile(
        {
            view: {
                name: [(layers[layer] / count).tolist() for layer in sorted(layers)]
                for name, layers in by_name.items()
            }
            for view, by_name in sums.items()
        }
    )


@torch.no_grad()
def attention_maps(
    restorable: RestorableModel, tokens: Tensor, layer: int, head: int
) -> dict[str, Any]:
    """Where one head looks, in the original, the stretched and the restored model.

    Args:
        restorable: the model.
        tokens: int64 `[tokens]`, no more than the native window.
        layer: counted among those with attention.
        head: of the queries.

    Returns:
        `layer` (as the model counts), `head`, `tokens`, `bin` (tokens of a bin), and `views`: by view the
        attention of each bin of queries (means) to each bin of keys (sums), rows that sum to 1.
    """
    lm = ChunkedCausalLM(restorable.model.eval())
    index = sorted(restorable.tap.modules)[layer]
    size = -(-len(tokens) // min(_BINS, len(tokens)))
    maps: dict[str, list[list[float]]] = {}
    for view in (ORIGINAL, STRETCHED, RESTORED):

        def observe(seen: LayerAttention, view: str = view) -> None:
            if seen.layer == index:
                maps[view] = _binned(_attention_of(seen, head), size).tolist()
                raise StopForward

        with restorable.view(view), restorable.tap.observing(observe):
            lm.hidden(tokens[None])
    return {"layer": index, "head": head, "tokens": len(tokens), "bin": size, "views": maps}


class _Heads:
    """Observer of a view's pass: adds each layer's KL by head to `found`."""

    def __init__(
        self, teacher: TeacherRelations, found: dict[str, dict[int, Tensor]], last: int
    ) -> None:
        self._teacher, self._found, self._last = teacher, found, last

    def __call__(self, seen: LayerAttention) -> None:
        teacher = self._teacher.of(seen.layer)
        options = {"window": seen.sliding_window, "reduction": "none"}
        for name, layers in self._found.items():
            if name == "qk":
                operands = (teacher["query"], teacher["key"], seen.query, seen.key)
                rows = attention_kl(*operands, scale=seen.scaling, **options)
            else:
                read = {"q": "query", "k": "key", "v": "value"}[name]
                rows = relation_kl(teacher[read], getattr(seen, read), **options)
            by_head = rows.double().mean((0, 2)).cpu()
            layers[seen.layer] = layers.get(seen.layer, 0.0) + by_head
        if seen.layer == self._last:
            raise StopForward


def _attention_of(seen: LayerAttention, head: int) -> Tensor:
    """Attention of one head of the first sequence, float32 `[tokens, tokens]`."""
    query = seen.query[0, head].float()
    key = seen.key[0, head // (seen.query.shape[1] // seen.key.shape[1])].float()
    at = torch.arange(len(query), device=query.device)
    distance = at[:, None] - at
    hidden = distance < 0
    if seen.sliding_window is not None:
        hidden |= distance >= seen.sliding_window
    return (query @ key.T * seen.scaling).masked_fill(hidden, -torch.inf).softmax(-1)


def _binned(attention: Tensor, size: int) -> Tensor:
    """`[bins, bins]` on the CPU: means over `size` queries of sums over `size` keys."""
    tokens = len(attention)
    bins = -(-tokens // size)
    edge = torch.arange(tokens, device=attention.device) // size
    summed = attention.new_zeros(tokens, bins).index_add_(1, edge, attention)
    rows = attention.new_zeros(bins, bins).index_add_(0, edge, summed)
    return (rows / torch.bincount(edge, minlength=bins)[:, None]).cpu()
