"""Queries, keys and values of a layer in one step: projections, what is trained of them, and rotation.

With peft's modules a layer casts A and B three times, makes a tensor of the projections' size for each
scaling and each sum, and rotates in five passes. Here the low-rank products are added by the matrix
products themselves, the three products with A are one, and the rotation is one pass, in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from linearard.ops import pointwise


@dataclass(frozen=True)
class Projection:
    """A matrix `[out, in]` and a bias `[out]`: frozen, in the precision of the products, or trained."""

    weight: Tensor
    bias: Tensor | None


@dataclass
class LowRank:
    """LoRA of three projections: `scaling * B (A x)` each, A `[r, in]`, B `[out, r]`, float32.

    A projection whose A is None has none.

    Attributes:
        dropout: share of x's elements that the low-rank products do not see; one draw for all three.
    """

    a: Sequence[Tensor | None]
    b: Sequence[Tensor | None]
    scalings: Sequence[float]
    dropout: float = 0.0


def project(
    x: Tensor,
    projections: Sequence[Projection],
    head_dim: int,
    cos: Tensor,
    sin: Tensor,
    low_rank: LowRank | None,
    base: Sequence[Tensor | None] = (None, None, None),
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `[batch, heads, tokens, head_dim]`, queries and keys rotated.

    Args:
        x: `[batch, tokens, in]`, in the precision of the products.
        projections: of q, k and v.
        head_dim: of all three.
        cos, sin: `[batch or 1, tokens, head_dim]`.
        low_rank: what is trained beside the projections, or None.
        base: the projections' own outputs where they are known (`base_outputs`). Those of q and k are
            overwritten.
    """
    a, b, scalings, dropout = (), (), (), 0.0
    if low_rank is not None:
        a, b = low_rank.a, low_rank.b
        scalings, dropout = low_rank.scalings, low_rank.dropout
    weights = [projection.weight for projection in projections]
    biases = [projection.bias for projection in projections]
    settings = _Settings(head_dim, tuple(scalings), dropout, base)
    return _Project.apply(x, cos, sin, settings, *weights, *biases, *a, *b)


def base_outputs(x: Tensor, projections: Sequence[Projection]) -> list[Tensor]:
    """The projections' own outputs `[rows, out]`, before LoRA and rotation."""
    rows = x.reshape(-1, x.shape[-1])
    return [functional.linear(rows, p.weight, p.bias) for p in projections]


@dataclass
class _Settings:
    head_dim: int
    scalings: tuple[float, ...]
    dropout: float
    base: Sequence[Tensor | None]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, settings: _Settings, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        weights, biases, a, b = (tensors[i : i + 3] for i in (0, 3, 6, 9))
        batch, tokens, width = x.shape
        rows = x.reshape(-1, width)
        kept: list[Tensor | None] = []
        with torch.autocast(x.device.type, enabled=False):
            weights, biases = _in_dtype(weights, x.dtype), _in_dtype(biases, x.dtype)
            known = zip(settings.base, weights, biases, strict=True)
            outputs = [functional.linear(rows, w, c) if y is None else y for y, w, c in known]
            at = [i for i, down in enumerate(a) if down is not None]
            if at:
                seen, mask = rows, None
                if settings.dropout:
                    seen, mask = torch.native_dropout(rows, settings.dropout, True)
                a_cast, b_cast = _cast([a[i] for i in at], [b[i] for i in at], x.dtype)
                low = _scaled_product(seen, a_cast, b_cast, [settings.scalings[i] for i in at])
                parts = low.split([up.shape[1] for up in b_cast], dim=1)
                for i, part, up in zip(at, parts, b_cast, strict=True):
                    own = (
                        settings.base is None or i < 2
                    )  # whoever knew the values may still read them
                    out = outputs[i] if own else torch.empty_like(outputs[i])
                    outputs[i] = torch.addmm(outputs[i], part, up.mT, out=out)
                kept = [seen, mask, low, a_cast, *b_cast]
            q, k, v = (y.view(batch, tokens, -1, settings.head_dim) for y in outputs)
            for rotated in (q, k):
                pointwise.rotate(rotated, cos, sin, out=rotated)
        ctx.settings, ctx.shape, ctx.adapted = settings, x.shape, at
        settings.base = ()
        ctx.trained, ctx.biased = ctx.needs_input_grad[4:7], ctx.needs_input_grad[7:10]
        if not ctx.needs_input_grad[0]:  # nothing flows back through them
            weights = [None] * 3
        ctx.save_for_backward(cos, sin, rows if any(ctx.trained) else None, *weights, *kept)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *arrived: Tensor | None) -> tuple[Tensor | None, ...]:
        cos, sin, rows, *saved = ctx.saved_tensors
        weights, kept = saved[:3], saved[3:]
        batch, tokens, width = ctx.shape
        gradients: list[Tensor | None] = []
        for gradient, rotated in zip(arrived, (True, True, False), strict=True):
            if gradient is not None:
                gradient = gradient.transpose(1, 2)
                if rotated:
                    gradient = pointwise.rotate_backward(gradient, cos, sin)
                gradient = gradient.reshape(batch * tokens, -1)
            gradients.append(gradient)
        to_weights = [
            _in_float32(gradient.mT, rows) if trained and gradient is not None else None
            for gradient, trained in zip(gradients, ctx.trained, strict=True)
        ]
        to_biases = [
            _wide_sum(gradient) if biased and gradient is not None else None
            for gradient, biased in zip(gradients, ctx.biased, strict=True)
        ]
        to_x = None
        if ctx.needs_input_grad[0]:
            for gradient, weight in zip(gradients, weights, strict=True):
                if gradient is not None:
                    to_x = gradient @ weight if to_x is None else to_x.addmm_(gradient, weight)
        to_a: list[Tensor | None] = [None] * 3
        to_b: list[Tensor | None] = [None] * 3
        if kept:
            for i, down, up in _low_rank_backward(gradients, kept, ctx.settings, ctx.adapted, to_x):
                to_a[i], to_b[i] = down, up
        to_x = None if to_x is None else to_x.view(batch, tokens, width)
        adapters = (*to_a, *to_b)[: len(ctx.needs_input_grad) - 10]
        return to_x, None, None, None, *to_weights, *to_biases, *adapters


def _low_rank_backward(
    gradients: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    settings: _Settings,
    at: Sequence[int],
    to_x: Tensor | None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Which projection, and the float32 gradients of its A and B; what flows to x is added to `to_x`."""
    seen, mask, low, a_cast, *b_cast = kept
    ranks = [up.shape[1] for up in b_cast]
    slope = torch.empty_like(low)
    pieces, parts = slope.split(ranks, dim=1), low.split(ranks, dim=1)
    to_b = {}
    for i, piece, part, up in zip(at, pieces, parts, b_cast, strict=True):
        gradient, scaling = gradients[i], settings.scalings[i]
        if gradient is None:
            piece.zero_()
            continue
        piece.addmm_(gradient, up, beta=0, alpha=scaling)
        to_b[i] = _in_float32(gradient.mT, part)  # the part is scaled
    to_a = _in_float32(slope.mT, seen).split(ranks)
    if to_x is not None and mask is None:
        to_x.addmm_(slope, a_cast)
    elif to_x is not None:
        scale = 1 / (1 - settings.dropout)
        to_x += torch.ops.aten.native_dropout_backward(slope @ a_cast, mask, scale)
    for i, down in zip(at, to_a, strict=True):
        if i in to_b:
            yield i, down, to_b[i]


def _scaled_product(x: Tensor, a: Tensor, b: Sequence[Tensor], scalings: Sequence[float]) -> Tensor:
    """`x @ a.mT`, each projection's columns times its scaling: what B and its gradient both read."""
    low = x.new_empty(len(x), len(a))
    if len(set(scalings)) == 1:
        return low.addmm_(x, a.mT, beta=0, alpha=scalings[0])
    ranks = [up.shape[1] for up in b]
    for part, rows, scaling in zip(low.split(ranks, dim=1), a.split(ranks), scalings, strict=True):
        part.addmm_(x, rows.mT, beta=0, alpha=scaling)
    return low


def _cast(
    a: Sequence[Tensor], b: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """All A below each other and every B, in this dtype; all in one pass."""
    together = a[0].new_empty(sum(len(p) for p in a), a[0].shape[1], dtype=dtype)
    b_cast = [torch.empty_like(p, dtype=dtype) for p in b]
    torch._foreach_copy_([*together.split([len(p) for p in a]), *b_cast], [*a, *b])
    return together, b_cast


def _in_dtype(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """The same, those in another dtype cast in one pass."""
    others = [x for x in tensors if x is not None and x.dtype != dtype]
    if not others:
        return list(tensors)
    cast = [torch.empty_like(x, dtype=dtype) for x in others]
    torch._foreach_copy_(cast, others)
    found = iter(cast)
    return [x if x is None or x.dtype == dtype else next(found) for x in tensors]


def _wide_sum(x: Tensor) -> Tensor:
    return x.sum(0, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _in_float32(x: Tensor, y: Tensor) -> Tensor:
    """`x @ y` in float32, whatever the precision of the factors; float64 stays."""
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(x, y, out_dtype=torch.float32)
    product = x @ y
    return product if product.dtype == torch.float64 else product.float()
