"""Operands of the relation KL, its formula in plain PyTorch, and what stands before every timing."""

from __future__ import annotations

import torch

from linearard.ops.relation_kl import attention_kl, relation_kl


def plain(*operands, window=None, cu_seqlens=None):
    """The formula in plain PyTorch, in the dtype of its operands: (x_t, x_s) or (q_t, k_t, q_s, k_s)."""
    pairs = [(x, x) for x in operands] if len(operands) == 2 else [operands[:2], operands[2:]]
    tokens, head_dim = operands[0].shape[2:]
    device = operands[0].device
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1)
    at = torch.arange(tokens, device=device)
    if window is not None:
        hidden |= at[:, None] - at >= window
    if cu_seqlens is not None:
        document = torch.bucketize(at, cu_seqlens, right=True)
        hidden |= document[:, None] != document
    log_t, log_s = (
        (q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * head_dim**-0.5)
        .masked_fill(hidden, torch.finfo(q.dtype).min)
        .log_softmax(-1)
        for q, k in pairs
    )
    return (log_t.exp() * (log_t - log_s)).sum(-1).mean()


def operands(shape, dtype=torch.bfloat16, seed=0):
    torch.manual_seed(seed)
    teacher = torch.randn(shape, device="cuda")
    student = teacher + 0.3 * torch.randn(shape, device="cuda")
    return teacher.to(dtype), student.to(dtype).requires_grad_()


def attention_operands(batch, heads, kv_heads, tokens, head_dim):
    """Queries and keys of teacher and student, in the order of ``attention_kl``."""
    q_t, q_s = operands((batch, heads, tokens, head_dim))
    k_t, k_s = operands((batch, kv_heads, tokens, head_dim), seed=1)
    return q_t, k_t, q_s, k_s


def gradients(loss, operands, options):
    """Those of all students, in float64, end to end."""
    trained = [x for x in operands if x.requires_grad]
    found = torch.autograd.grad(loss(*operands, **options), trained)
    return torch.cat([x.double().flatten() for x in found])


def check(given, **limits):
    """Errors of ours, of ours in any order, and of plain PyTorch; exits if ours is over twice theirs."""
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in given]
    truth = gradients(plain, exact, limits)

    def error(loss, **options):
        return ((gradients(loss, given, limits | options) - truth).norm() / truth.norm()).item()

    theirs = error(plain)
    loss = relation_kl if len(given) == 2 else attention_kl
    ours = [error(loss, deterministic=order) for order in (True, False)]
    if not max(ours) <= 2 * theirs:
        shapes = [tuple(x.shape) for x in given]
        raise SystemExit(f"{shapes}: error {max(ours):.1e}, plain PyTorch {theirs:.1e}: not timed")
    return *ours, theirs


def small(shape):
    """Operands of a shape, as many as float64 can bear."""
    batch, heads, tokens, head_dim = shape
    return operands((batch, min(heads, 4), min(tokens, 2048), head_dim))
