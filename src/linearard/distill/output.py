"""Losses that read the model's output: logit KL and next-token cross-entropy, without whole logits.

A window of 32,768 tokens with 128k tokens of vocabulary has 17 GB of float32 logits. Both losses walk
over rows in chunks, and form the gradient of a chunk's hidden states while its logits exist: nothing of
the size of the vocabulary is kept, and nothing is computed a second time in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linearard.capture import SharedSequence
from linearard.errors import RecipeError
from linearard.model import ChunkedCausalLM
from linearard.ops import pointwise
from linearard.ops.derivatives import anchor, first_derivatives_only

#: Logits of some rows, and where these rows are -> their summed loss. The logits become its gradient.
_ChunkLoss = Callable[[Tensor, slice], Tensor]


def next_token_loss(
    language_model: ChunkedCausalLM,
    hidden: Tensor,
    input_ids: Tensor,
    mask: Tensor | None,
    shared: SharedSequence | None = None,
) -> Tensor:
    """Mean cross-entropy of the next token, in nats.

    Args:
        language_model: gives logits of hidden states; its head is frozen.
        hidden: `[batch, tokens, hidden]`, or this process's part of the tokens.
        input_ids: int64 `[batch, tokens]`.
        mask: bool `[batch, tokens]`, False for padding, or None.
        shared: the processes that share the window, whose mean is the window's loss; None: there is one.
    """
    tokens = input_ids.shape[1]
    own = slice(0, tokens) if shared is None else shared.part(tokens)
    foretold = slice(own.start + 1, min(own.stop + 1, tokens))
    targets = input_ids[:, foretold].flatten()
    counted = None if mask is None else mask[:, foretold].flatten()

    def chunk_loss(logits: Tensor, part: slice) -> Tensor:
        some = None if counted is None else counted[part]
        return pointwise.cross_entropy_rows(logits, targets[part], some).sum()

    rows = hidden[:, : foretold.stop - foretold.start].flatten(0, 1)
    total = _SumOverRows.apply(rows, anchor(rows), language_model, chunk_loss)
    return _mean(total, input_ids[:, 1:], None if mask is None else mask[:, 1:], shared)


def output_kl(
    language_model: ChunkedCausalLM,
    teacher_hidden: Tensor,
    student_hidden: Tensor,
    positions: int | None,
    mask: Tensor | None,
    shared: SharedSequence | None = None,
) -> Tensor:
    """Mean `KL(teacher || student)` of the output distributions on the last `positions` tokens, in nats.

    Args:
        language_model: gives logits of hidden states; the head is frozen, and the same for both.
        teacher_hidden, student_hidden: `[batch, tokens, hidden]`, or this process's part of the tokens.
        positions: how many trailing tokens of the window count; None: all.
        mask: bool `[batch, all tokens]`, False for padding, or None.
        shared: the processes that share the window, whose mean is the window's term; None: there is one.
    """
    own = student_hidden.shape[1]
    tokens, start = (own, 0) if shared is None else (own * shared.size, own * shared.rank)
    first = 0 if positions is None else max(tokens - positions, 0)
    last = slice(min(max(first - start, 0), own), own)
    teacher = teacher_hidden[:, last].flatten(0, 1)
    student = student_hidden[:, last].flatten(0, 1)
    counted = None if mask is None else mask[:, start + last.start : start + own].flatten()

    def chunk_loss(logits: Tensor, part: slice) -> Tensor:
        linear = language_model.head_is_linear(teacher)
        form = language_model.head if linear else language_model.logits
        some = None if counted is None else counted[part]
        return pointwise.kl_rows(form(teacher[part]), logits, some).sum()

    total = _SumOverRows.apply(student, anchor(student), language_model, chunk_loss)
    everywhere = total.new_empty(len(student_hidden), tokens - first, device="meta")
    return _mean(total, everywhere, None if mask is None else mask[:, first:], shared)


def _mean(
    total: Tensor, everywhere: Tensor, mask: Tensor | None, shared: SharedSequence | None
) -> Tensor:
    """A sum over this process's positions, over its share of all the window's that count.

    Args:
        total: the sum.
        everywhere: has as many elements as there are positions.
        mask: bool, those that count; None: all.
        shared: the processes that share the window, or None.
    """
    count = everywhere.numel() if mask is None else mask.sum().clamp(min=1)
    return total / count if shared is None else total * shared.size / count


def check_frozen_head(language_model: ChunkedCausalLM) -> None:
    """Refuse a head that is trained: these losses give gradients to hidden states alone.

    Raises:
        RecipeError: a parameter of the LM head is trainable.
    """
    if any(parameter.requires_grad for parameter in language_model.head.parameters()):
        raise RecipeError(
            expected="a frozen LM head",
            got="an adapter on it",
            fix="Leave the head out of adapter.target_modules.",
        )


class _SumOverRows(torch.autograd.Function):
    """Sum of a loss over rows of hidden states `[rows, hidden]`, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        place: Tensor,
        language_model: ChunkedCausalLM,
        chunk_loss: _ChunkLoss,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(rows) if wanted else None
        total = torch.zeros((), device=rows.device)
        linear = language_model.head_is_linear(rows)
        # The operations keep the precision of the forward pass, as in any backward pass.
        precise = torch.autocast(rows.device.type, enabled=False)
        for part in language_model.chunks(len(rows)):
            if linear:
                with precise:
                    logits = language_model.head(rows[part])
                    total += chunk_loss(logits, part)
                    if wanted:
                        torch.mm(logits, language_model.head.weight, out=gradient[part])
                continue
            leaf = rows[part].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                logits = language_model.logits(leaf)
            slope = logits.detach().clone()
            total += chunk_loss(slope, part)
            if wanted:
                with precise:
                    (gradient[part],) = torch.autograd.grad(logits, leaf, slope)
        ctx.save_for_backward(gradient, place)
        return total

    @staticmethod
    @first_derivatives_only("losses on the output", "Form the logits of the whole window yourself.")
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, _ = ctx.saved_tensors
        return gradient * upstream, None, None, None  # a number of float32 changes no precision
