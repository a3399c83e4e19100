"""Linear memory in plain torch, on any device: blocks of rows, each as wide as what it can see.

A block holds at most a fixed number of scores (or one row), whatever the length. Self-relations
use the symmetry of the scores: one block of ``P_s - P_t`` gives both parts of the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from linearard.ops.relation_kl.visibility import Visibility

_HIDDEN = -1e30  # finite, so that 0 * (hidden - hidden) is 0
_ROWS = 64
_BLOCK_CPU = 1 << 18  # scores a block: what stays in a core's cache
_BLOCK_ACCELERATOR = 1 << 24


class _Block(NamedTuple):
    """Rows ``i0:i1`` of key-value heads ``h0:h1`` of one sequence, and the columns ``j0:j1``."""

    batch: int
    h0: int
    h1: int
    i0: int
    i1: int
    j0: int
    j1: int

    def column(self, x: Tensor) -> Tensor:
        """The block's rows of ``x`` [B, Hkv, G, N], as a column [heads, G * rows, 1]."""
        return x[self.batch, self.h0 : self.h1, :, self.i0 : self.i1].flatten(1).unsqueeze(-1)


class _Model:
    """One model's q and k, block by block in the accumulation dtype; a group shares its keys."""

    def __init__(self, q: Tensor, k: Tensor | None):
        self.k = q if k is None else k
        self.group = q.shape[1] // self.k.shape[1]
        self.q = q.unflatten(1, (-1, self.group))  # [B, Hkv, G, N, D]
        self.dtype = torch.promote_types(q.dtype, torch.float32)

    def queries(self, block: _Block) -> Tensor:
        """[heads, G * rows, D]."""
        q = self.q[block.batch, block.h0 : block.h1, :, block.i0 : block.i1]
        return q.to(self.dtype).flatten(1, 2)

    def keys(self, block: _Block) -> Tensor:
        """[heads, columns, D]."""
        return self.k[block.batch, block.h0 : block.h1, block.j0 : block.j1].to(self.dtype)

    def scores(self, block: _Block, scale: float) -> Tensor:
        """[heads, G * rows, columns], to the bit the same in forward and backward."""
        return torch.bmm(self.queries(block), self.keys(block).mT).mul_(scale)

    def blocks(self, visible: Visibility) -> Iterator[_Block]:
        """All rows, in a fixed order; none but columns that some row of the block sees."""
        batch, kv_heads, _, tokens, _ = self.q.shape
        edges = [0, tokens]
        if visible.cu_seqlens is not None:
            edges = [0, *visible.cu_seqlens.tolist(), tokens]
        longest = max(end - start for start, end in pairwise(edges))
        reach = tokens if visible.window is None else visible.window - 1
        width = min(longest, _ROWS + (1 if visible.causal else 2) * reach)

        budget = _BLOCK_CPU if self.q.device.type == "cpu" else _BLOCK_ACCELERATOR
        rows = max(1, min(_ROWS, longest, budget // (self.group * width)))
        heads = max(1, min(kv_heads, budget // (self.group * rows * width)))
        for b in range(batch):
            for h0 in range(0, kv_heads, heads):
                h1 = min(h0 + heads, kv_heads)
                for start, end in pairwise(edges):
                    for i0 in range(start, end, rows):
                        i1 = min(i0 + rows, end)
                        j0 = max(start, i0 - reach)
                        j1 = i1 if visible.causal else min(end, i1 + reach)
                        yield _Block(b, h0, h1, i0, i1, j0, j1)


def _hide(scores: Tensor, block: _Block, visible: Visibility, fill: float) -> None:
    """Fill what the rows of the block cannot see; ``scores`` [heads, G * rows, columns]."""
    rows, columns = block.i1 - block.i0, block.j1 - block.j0
    own = block.i0 - block.j0  # the column of the first row's own token
    by_row = scores.unflatten(1, (-1, rows))
    everything = scores.new_ones((), dtype=torch.bool).expand(rows, columns)
    if visible.causal:
        by_row[..., own:].masked_fill_(everything[:, own:].triu(1), fill)
    if visible.window is not None:
        by_row.masked_fill_(everything.tril(own - visible.window), fill)
        if not visible.causal:
            by_row.masked_fill_(everything.triu(own + visible.window), fill)
    if visible.valid is not None:
        scores.masked_fill_(~visible.valid[block.batch, block.j0 : block.j1], fill)


def forward(relations, visible, scale):
    """KL [B, H, N] and statistics [4, B, Hkv, G, N] of each; see ``autograd.Implementation``."""
    rows, stats = zip(*(_rows(*r, visible, scale) for r in relations), strict=True)
    return list(rows), list(stats)


def backward(grads, stats, relations, visible, scale, needs):
    """Gradients of the students; see ``autograd.Implementation``."""
    return [
        (None, None) if grad is None else _gradients(grad, known, *relation, visible, scale, needed)
        for grad, known, relation, needed in zip(grads, stats, relations, needs, strict=True)
    ]


def _rows(q_t, k_t, q_s, k_s, visible, scale):
    """KL of one relation, and four numbers a row.

    The largest score of teacher and student, the student's sum of exponentials over the teacher's,
    and one over the student's. With the sums that belong to these exponentials a row's
    probabilities add up to 1; a rounded logsumexp would shift all of them together.
    """
    teacher, student = _Model(q_t, k_t), _Model(q_s, k_s)
    batch, kv_heads, group, tokens, _ = student.q.shape
    heads_of = (batch, kv_heads, group, tokens)
    rows = torch.empty(heads_of, dtype=student.dtype, device=q_s.device)
    stats = rows.new_empty(4, *heads_of)

    for block in student.blocks(visible):
        here = (block.batch, slice(block.h0, block.h1), slice(None), slice(block.i0, block.i1))
        shifted, total = [], []
        for index, model in enumerate((teacher, student)):
            scores = model.scores(block, scale)
            _hide(scores, block, visible, _HIDDEN)
            largest = scores.amax(-1, keepdim=True)
            shifted.append(scores.sub_(largest))
            p = scores.exp()
            total.append(p.sum(-1))
            stats[index][here] = largest.unflatten(1, (group, -1)).squeeze(-1)
            if index == 0:
                p_t = p
        gap = shifted[0].sub_(shifted[1])
        mean_gap = p_t.mul_(gap).sum(-1).div_(total[0])
        rows[here] = (mean_gap - (total[0] / total[1]).log_()).unflatten(1, (group, -1))
        stats[2][here] = (total[1] / total[0]).unflatten(1, (group, -1))
        stats[3][here] = total[1].reciprocal().unflatten(1, (group, -1))

    if visible.valid is not None:
        gone = ~visible.valid[:, None, None]
        rows.masked_fill_(gone, 0.0)
        # exp(-inf) = 0: rows that do not count add nothing to a gradient
        stats[:2].masked_fill_(gone, torch.inf)
    return rows.flatten(1, 2), stats


def _gradients(grad, stats, q_t, k_t, q_s, k_s, visible, scale, needs):
    teacher, student = _Model(q_t, k_t), _Model(q_s, k_s)
    shift_t, shift_s, ratio, inverse = stats
    grad = grad.unflatten(1, (-1, student.group)) * inverse
    self_relation = k_s is None
    grad_q = torch.zeros(student.q.shape, dtype=student.dtype, device=q_s.device)
    if self_relation:
        grad_k = grad_q[:, :, 0]
    else:
        grad_k = torch.zeros(k_s.shape, dtype=student.dtype, device=q_s.device)

    for block in student.blocks(visible):
        here = (block.batch, slice(block.h0, block.h1), slice(None), slice(block.i0, block.i1))
        weight, e_t = (
            model.scores(block, scale).sub_(block.column(shift)).exp_()
            for model, shift in ((student, shift_s), (teacher, shift_t))
        )
        # equal models: a ratio of exactly 1, and exactly 0
        weight.sub_(e_t.mul_(block.column(ratio))).mul_(block.column(grad))
        _hide(weight, block, visible, 0.0)
        if self_relation or needs[0]:
            part = torch.bmm(weight, student.keys(block)).mul_(scale)
            grad_q[here] += part.unflatten(1, (student.group, -1))
        if self_relation or needs[1]:
            columns = grad_k[block.batch, block.h0 : block.h1, block.j0 : block.j1]
            columns.baddbmm_(weight.mT, student.queries(block), alpha=scale)
    grad_q = grad_q.flatten(1, 2).to(q_s.dtype)
    return grad_q, None if self_relation else grad_k.to(k_s.dtype)
