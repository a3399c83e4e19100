"""Fast rotary pairs of the student, moved to the stretched frequencies nearest to their native ones.

A head's rotary pairs are interchangeable: with the rows of its query and key projections reordered
alike, and the frequencies too, it computes the same scores. A scaling that slows every frequency
(linear) leaves many pairs a slot that turns as fast as they did natively, only not their own. Starting
there, the student has less to learn than from rows that all turn too slowly. Pairs that turn less than
once in the native window stay: it is they that tell distances beyond it, if they are slowed
(docs/research/recipes.md).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from linearard.capture import AttentionTap, LayerAttention
from linearard.errors import ModelError
from linearard.model.two_view_linear import TwoViewLinear
from linearard.rope import RopeViews


def fast_pairs(native: Tensor, stretched: Tensor, window: int) -> Tensor:
    """Which pair each slot takes: int64 `[pairs]`, a permutation.

    Pairs that turn less than once in the native window keep their slots. The slots of the others choose
    in order of falling frequency, each the free pair whose native frequency is nearest on a logarithmic
    scale; the first of equals.

    Args:
        native, stretched: frequencies by pair and by slot, radians a token, `[pairs]`.
        window: native window in tokens.
    """
    order = torch.arange(len(native))
    fast = native * window >= 2 * math.pi
    native, slots = (x.double().clamp_min(1e-30).log() for x in (native, stretched))
    free = fast.clone()
    for slot in slots.argsort(descending=True, stable=True).tolist():
        if fast[slot]:
            distance = torch.where(free, (native - slots[slot]).abs(), torch.inf)
            order[slot] = distance.argmin()
            free[order[slot]] = False
    return order


@torch.no_grad()
def move_pairs(model: Any, tap: AttentionTap, rope: RopeViews) -> None:
    """Reorder the rows of the trained query and key projections, and check that no score changed.

    Args:
        model: with trained copies of its projections (`adapter.kind: direct`), switched on.
        tap, rope: of that model.

    Raises:
        ModelError: the model has no such projections, or reordering changes more than the order.
    """
    if list(rope.tables("native")) != [""]:
        _refuse(f"several RoPE tables in {type(model).__name__}")
    native, stretched = (rope.tables(view)[""].inv_freq for view in ("native", "stretched"))
    order = fast_pairs(native, stretched, rope.native_window)
    ids = torch.arange(16, device=model.device)[None] + 1
    with rope.reordered(None):
        before = _operands(model, tap, ids)
    for module in tap.modules.values():
        for name in ("q_proj", "k_proj"):
            _reorder(getattr(module, name, None), name, module.head_dim, order)
    with rope.reordered(order):
        after = _operands(model, tap, ids)
    for old, new in zip(before, after, strict=True):
        for x, y in ((old.query, new.query), (old.key, new.key)):
            expected = _by_pair(x.transpose(-1, -2), order).transpose(-1, -2).float()
            # Wrong rows differ as much as they are large; rounding differs by far less.
            if not (y.float() - expected).norm() <= 0.1 * expected.norm():
                _refuse(f"another result in layer {old.layer} of {type(model).__name__}")


def _operands(model: Any, tap: AttentionTap, ids: Tensor) -> list[LayerAttention]:
    seen: list[LayerAttention] = []
    training = model.training
    try:
        with tap.observing(seen.append):
            model.eval()(input_ids=ids, use_cache=False)
    finally:
        model.train(training)
    return seen


def _reorder(projection: Any, name: str, head_dim: int, order: Tensor) -> None:
    if not isinstance(projection, TwoViewLinear):
        _refuse(f"no trained {name} of its own")
    for parameter in (projection.weight, projection.bias):
        if parameter is not None:
            heads = parameter.reshape(-1, head_dim, parameter[0].numel())
            parameter.copy_(_by_pair(heads, order).reshape(parameter.shape))


def _by_pair(rows: Tensor, order: Tensor) -> Tensor:
    """`[..., head_dim, n]`: slot j and its partner, half the rotated width on, take pair order[j]."""
    half = len(order)
    order = order.to(rows.device)
    index = torch.cat(
        [order, order + half, torch.arange(2 * half, rows.shape[-2], device=rows.device)]
    )
    return rows.index_select(-2, index)


def _refuse(got: str) -> None:
    raise ModelError(
        expected="query and key projections of their own, rotated in pairs half a head apart",
        got=got,
        fix="Set adapter.rotary_pairs to kept.",
    )
