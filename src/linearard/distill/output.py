"""Losses that read the model's output: logit KL and next-token cross-entropy, without whole logits.

A window of 32,768 tokens with 128k tokens of vocabulary has 17 GB of float32 logits. Both losses walk
over rows in chunks and form a chunk's logits again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from linearard.model import ChunkedCausalLM


def next_token_loss(
    language_model: ChunkedCausalLM, hidden: Tensor, input_ids: Tensor, mask: Tensor | None
) -> Tensor:
    """Mean cross-entropy of the next token, in nats.

    Args:
        language_model: gives logits of hidden states.
        hidden: `[batch, tokens, hidden]`.
        input_ids: int64 `[batch, tokens]`.
        mask: bool `[batch, tokens]`, False for padding, or None.
    """
    targets = input_ids[:, 1:]
    if mask is not None:
        targets = targets.masked_fill(~mask[:, 1:], -100)
    rows, targets = hidden[:, :-1].flatten(0, 1), targets.flatten()

    def chunk_sum(part: slice) -> Tensor:
        logits = language_model.logits(rows[part])
        return functional.cross_entropy(logits, targets[part], reduction="sum")

    count = (targets != -100).sum().clamp(min=1)
    return _sum_chunks(language_model, chunk_sum, len(rows)) / count


def output_kl(
    language_model: ChunkedCausalLM,
    teacher_hidden: Tensor,
    student_hidden: Tensor,
    positions: int,
    mask: Tensor | None,
) -> Tensor:
    """Mean `KL(teacher || student)` of the output distributions on the last `positions` tokens, in nats.

    Args:
        language_model: gives logits of hidden states; the head is the same for both.
        teacher_hidden, student_hidden: `[batch, tokens, hidden]`.
        positions: how many trailing tokens count.
        mask: bool `[batch, tokens]`, False for padding, or None.
    """
    teacher = teacher_hidden[:, -positions:].flatten(0, 1)
    student = student_hidden[:, -positions:].flatten(0, 1)
    valid = None if mask is None else mask[:, -positions:].flatten()

    def chunk_sum(part: slice) -> Tensor:
        with torch.no_grad():
            expected = language_model.logits(teacher[part]).log_softmax(-1)
        got = language_model.logits(student[part]).log_softmax(-1)
        rows = (expected.exp() * (expected - got)).sum(-1)
        return rows.sum() if valid is None else rows.masked_fill(~valid[part], 0.0).sum()

    count = len(student) if valid is None else valid.sum().clamp(min=1)
    return _sum_chunks(language_model, chunk_sum, len(student)) / count


def _sum_chunks(
    language_model: ChunkedCausalLM, chunk_sum: Callable[[slice], Tensor], rows: int
) -> Tensor:
    total: Tensor | float = 0.0
    for part in language_model.chunks(rows):
        total = total + checkpoint(chunk_sum, part, use_reentrant=False)
    return total
