"""Losses of logits, a row a program: two sweeps over the row, the second from the cache.

The first sweep finds maximum and sum of exponentials together, the second the loss and its gradient,
which takes the place of the logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from linearard.ops.pointwise.triton.launch import on_device

_BLOCK = 4096


@triton.jit
def _logsumexp(row, classes, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    # A finite floor: the difference of two infinities would be no number.
    largest = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, classes, BLOCK):
        inside = start + columns < classes
        x = tl.load(row + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(largest, x)
        total = total * tl.exp(largest - higher) + tl.exp(x - higher)
        largest = higher
    top = tl.max(largest, 0)
    return top, tl.log(tl.sum(total * tl.exp(largest - top), 0))


@triton.jit
def _kl(teacher, student, counted, out, classes, HAS_COUNTED: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    expected, got = teacher + program * classes, student + program * classes
    weight = 1.0
    if HAS_COUNTED:
        weight = tl.load(counted + program).to(tl.float32)
    top_t, log_t = _logsumexp(expected, classes, BLOCK)
    top_s, log_s = _logsumexp(got, classes, BLOCK)
    columns = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, classes, BLOCK):
        inside = start + columns < classes
        t = tl.load(expected + start + columns, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(got + start + columns, mask=inside, other=0.0).to(tl.float32)
        log_p, log_q = (t - top_t) - log_t, (s - top_s) - log_s
        p = tl.exp(log_p)
        # a class that the teacher excludes costs nothing
        sums += p * tl.where(inside & (p > 0), log_p - log_q, 0.0)
        tl.store(got + start + columns, weight * (tl.exp(log_q) - p), mask=inside)
    tl.store(out + program, weight * tl.sum(sums, 0))


@triton.jit
def _cross_entropy(
    logits, targets, counted, out, classes, HAS_COUNTED: tl.constexpr, BLOCK: tl.constexpr
):
    program = tl.program_id(0).to(tl.int64)
    row = logits + program * classes
    weight = 1.0
    if HAS_COUNTED:
        weight = tl.load(counted + program).to(tl.float32)
    target = tl.load(targets + program)
    top, log_sum = _logsumexp(row, classes, BLOCK)
    told = tl.load(row + target).to(tl.float32)
    tl.store(out + program, weight * (log_sum - (told - top)))
    columns = tl.arange(0, BLOCK)
    for start in range(0, classes, BLOCK):
        inside = start + columns < classes
        x = tl.load(row + start + columns, mask=inside, other=0.0).to(tl.float32)
        p = tl.exp((x - top) - log_sum)
        slope = tl.where(start + columns == target, p - 1.0, p)
        tl.store(row + start + columns, weight * slope, mask=inside)


def kl_rows(teacher: Tensor, student: Tensor, counted: Tensor | None) -> Tensor:
    """See `api.kl_rows`."""
    return _launch(_kl, student, (teacher, student), counted)


def cross_entropy_rows(logits: Tensor, targets: Tensor, counted: Tensor | None) -> Tensor:
    """See `api.cross_entropy_rows`."""
    return _launch(_cross_entropy, logits, (logits, targets), counted)


def _launch(kernel, logits: Tensor, operands: tuple[Tensor, ...], counted: Tensor | None) -> Tensor:
    rows, classes = logits.shape
    out = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        with on_device(logits):
            kernel[(rows,)](
                *operands,
                out if counted is None else counted,
                out,
                classes,
                HAS_COUNTED=counted is not None,
                BLOCK=min(_BLOCK, triton.next_power_of_2(classes)),
                num_warps=8,
            )
    return out
