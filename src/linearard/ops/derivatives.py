"""Gradients that have no gradient of their own, and say so.

PyTorch's `once_differentiable` refuses only where what arrives from above needs a gradient. Of a loss, a
number that everything else is derived from, nothing arrives from above: `create_graph=True` would get
gradients that depend on nothing, and a penalty on them would be left out without a word.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linearard.errors import OperandError

_Backward = Callable[..., Any]


def first_derivatives_only(what: str, fix: str) -> Callable[[_Backward], _Backward]:
    """Decorator of an autograd function's `backward`, under `staticmethod`.

    What it returns depends on the saved tensors that need a gradient; asking for that dependence raises
    `OperandError`.

    Args:
        what: is differentiated, for the message.
        fix: what to do instead.
    """

    def decorate(backward: _Backward) -> _Backward:
        @functools.wraps(backward)
        def once(ctx: Any, *arrived: Tensor | None) -> Any:
            asked = torch.is_grad_enabled()  # by `create_graph`
            with torch.no_grad():
                found = backward(ctx, *arrived)
            if not asked:
                return found
            sources = [
                x
                for x in (*arrived, *ctx.saved_tensors)
                if isinstance(x, Tensor) and x.requires_grad
            ]
            return tuple(
                _Refused.apply(what, fix, x, *sources) if isinstance(x, Tensor) and sources else x
                for x in found
            )

        return once

    return decorate


def anchor(x: Tensor) -> Tensor:
    """No numbers, but a place in the graph where `x` is: saved for backward, it holds no memory."""
    return x.flatten()[:0].clone()


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, what: str, fix: str, gradient: Tensor, *sources: Tensor) -> Tensor:
        ctx.words = what, fix
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *arrived: Tensor) -> Any:
        what, fix = ctx.words
        raise OperandError(
            expected=f"first derivatives of {what}", got="a derivative of its gradient", fix=fix
        )
