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

from linearard.errors import RecipeError
from linearard.model import ChunkedCausalLM

#: Float32 logits of some rows, and where these rows are -> their summed loss and its gradient.
_ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


def next_token_loss(
    language_model: ChunkedCausalLM, hidden: Tensor, input_ids: Tensor, mask: Tensor | None
) -> Tensor:
    """Mean cross-entropy of the next token, in nats.

    Args:
        language_model: gives logits of hidden states; its head is frozen.
        hidden: `[batch, tokens, hidden]`.
        input_ids: int64 `[batch, tokens]`.
        mask: bool `[batch, tokens]`, False for padding, or None.
    """
    targets = input_ids[:, 1:].flatten()
    counted = torch.ones_like(targets, dtype=torch.bool)
    if mask is not None:
        counted = mask[:, 1:].flatten()

    def chunk_loss(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        log_p = logits.log_softmax(-1)
        index, weight = targets[part, None], counted[part, None].to(log_p.dtype)
        loss = -(log_p.gather(1, index) * weight).sum()
        slope = log_p.exp_()
        slope.scatter_add_(1, index, torch.full_like(weight, -1.0))
        return loss, slope.mul_(weight)

    rows = hidden[:, :-1].flatten(0, 1)
    return _SumOverRows.apply(rows, language_model, chunk_loss) / counted.sum().clamp(min=1)


def output_kl(
    language_model: ChunkedCausalLM,
    teacher_hidden: Tensor,
    student_hidden: Tensor,
    positions: int | None,
    mask: Tensor | None,
) -> Tensor:
    """Mean `KL(teacher || student)` of the output distributions on the last `positions` tokens, in nats.

    Args:
        language_model: gives logits of hidden states; the head is frozen, and the same for both.
        teacher_hidden, student_hidden: `[batch, tokens, hidden]`.
        positions: how many trailing tokens count; None: all.
        mask: bool `[batch, tokens]`, False for padding, or None.
    """
    counted = slice(None if positions is None else -positions, None)
    teacher = teacher_hidden[:, counted].flatten(0, 1)
    student = student_hidden[:, counted].flatten(0, 1)
    valid = None if mask is None else mask[:, counted].flatten()

    def chunk_loss(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        expected = language_model.logits(teacher[part]).log_softmax(-1)
        got = logits.log_softmax(-1)
        p = expected.exp()
        rows = expected.sub_(got).mul_(p).sum(-1)
        slope = got.exp_().sub_(p)
        if valid is not None:
            rows = rows.masked_fill(~valid[part], 0.0)
            slope.masked_fill_(~valid[part, None], 0.0)
        return rows.sum(), slope

    count = len(student) if valid is None else valid.sum().clamp(min=1)
    return _SumOverRows.apply(student, language_model, chunk_loss) / count


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
        ctx: Any, rows: Tensor, language_model: ChunkedCausalLM, chunk_loss: _ChunkLoss
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(rows) if wanted else None
        total = torch.zeros((), device=rows.device)
        for part in language_model.chunks(len(rows)):
            leaf = rows[part].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                logits = language_model.logits(leaf)
            loss, slope = chunk_loss(logits.detach(), part)
            total += loss
            if wanted:
                with torch.autocast(rows.device.type, enabled=False):  # as in any backward pass
                    (gradient[part],) = torch.autograd.grad(logits, leaf, slope)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None
