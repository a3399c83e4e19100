"""Float64 answers that share no code with the package, and the error that plain PyTorch makes.

Operands are drawn, rounded to the dtype of the test, and only then promoted: the budget is what
the same formula costs when it runs in that dtype on that device, twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from linearard.ops.relation_kl import attention_kl, relation_kl


@dataclass(frozen=True)
class Case:
    """One problem; ``kv_heads`` None is a self-relation (q = k)."""

    tokens: int
    head_dim: int
    heads: int = 2
    kv_heads: int | None = None
    batch: int = 1
    causal: bool = True
    padding: str = "none"  # right, left, holes
    temperature: float = 1.0
    strided: bool = False

    def __str__(self) -> str:
        kind = "self" if self.kv_heads is None else f"{self.heads}over{self.kv_heads}"
        parts = [kind, f"n{self.tokens}", f"d{self.head_dim}", "causal" if self.causal else "full"]
        parts += [self.padding] * (self.padding != "none") + ["strided"] * self.strided
        return "-".join(parts)


def rows_by_loops(q_t, k_t, q_s, k_s, valid, causal, scale):
    """The definition, one number at a time; [B][H][N] as a float64 tensor."""
    batch, heads, tokens, _ = q_t.shape
    group = heads // k_t.shape[1]
    out = torch.zeros(batch, heads, tokens, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(tokens):
                if not valid[b, i]:
                    continue
                columns = [j for j in range(i + 1 if causal else tokens) if valid[b, j]]
                score = [
                    [
                        scale * float(q[b, h, i].double() @ k[b, h // group, j].double())
                        for j in columns
                    ]
                    for q, k in ((q_t, k_t), (q_s, k_s))
                ]
                lse = [max(s) + math.log(sum(math.exp(x - max(s)) for x in s)) for s in score]
                out[b, h, i] = sum(
                    math.exp(t - lse[0]) * ((t - lse[0]) - (s - lse[1]))
                    for t, s in zip(*score, strict=True)
                )
    return out


def dense_rows(q_t, k_t, q_s, k_s, valid, causal, scale):
    """The same with torch.softmax in the dtype of the operands, differentiable."""
    group = q_t.shape[1] // k_t.shape[1]
    tokens = q_t.shape[2]
    visible = valid[:, None, None, :].expand(-1, 1, tokens, -1)
    if causal:
        visible = visible & torch.ones(tokens, tokens, dtype=torch.bool, device=valid.device).tril()
    lowest = torch.finfo(q_t.dtype).min

    def log_p(q, k):
        scores = q @ k.repeat_interleave(group, 1).transpose(-1, -2) * scale
        return torch.log_softmax(torch.where(visible, scores, lowest), -1)

    teacher, student = log_p(q_t, k_t), log_p(q_s, k_s)
    gap = torch.where(visible, teacher - student, 0)
    return torch.where(valid[:, None], (torch.exp(teacher) * gap).sum(-1), 0)


def draw(case: Case, dtype, device, seed=0):
    """q_t, k_t, q_s, k_s in ``dtype`` (k is q for a self-relation) and valid [B, N]."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(heads):
        shape = (case.batch, heads, case.tokens, case.head_dim)
        if case.strided:  # [B, N, H, D] as projections leave it, inside a larger buffer
            b, h, n, d = shape
            wide = torch.randn(b, n, h, 2 * d, generator=generator)
            return wide.to(device, dtype)[..., :d].transpose(1, 2)
        return torch.randn(shape, generator=generator).to(device, dtype)

    def near(x):
        noise = torch.randn(x.shape, generator=generator).to(device)
        y = x.clone()  # keeps the strides
        return y.copy_(x.float() + 0.3 * noise)

    q_t = tensor(case.heads)
    q_s = near(q_t)
    k_t, k_s = q_t, q_s
    if case.kv_heads is not None:
        k_t = tensor(case.kv_heads)
        k_s = near(k_t)

    valid = torch.ones(case.batch, case.tokens, dtype=torch.bool)
    for b in range(case.batch):
        cut = (case.tokens * (b + 1)) // (case.batch + 2)
        if case.padding == "right":
            valid[b, case.tokens - cut :] = False
        elif case.padding == "left":
            valid[b, :cut] = False
        elif case.padding == "holes":
            valid[b] = torch.rand(case.tokens, generator=generator) > 0.4
    return q_t, k_t, q_s, k_s, valid.to(device)


def gradients(rows, upstream, q_s, k_s):
    """Rows, then the gradients of q_s and k_s (of q_s alone where they are one tensor)."""
    leaves = (q_s,) if k_s is q_s else (q_s, k_s)
    return (rows.detach(), *torch.autograd.grad((rows * upstream).sum(), leaves))


def error(x, truth):
    """Relative to the norm of the truth; infinite where x is not finite."""
    difference = (x.double() - truth).norm() / truth.norm()
    return difference.item() if torch.isfinite(difference) else math.inf


def check(case: Case, implementation: str, dtype=torch.float32, device="cpu"):
    """Values and gradients within twice the error of plain PyTorch; poison where none may look."""
    q_t, k_t, q_s, k_s, valid = draw(case, dtype, device)
    scale = case.head_dim**-0.5 / case.temperature
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(q_t.shape[:3], generator=generator).to(device)

    def dense(kind):
        t = [x.detach().to(kind) for x in (q_t, k_t)]
        q = q_s.detach().to(kind, copy=True).requires_grad_()
        k = q if k_s is q_s else k_s.detach().to(kind, copy=True).requires_grad_()
        rows = dense_rows(*t, q, k, valid, case.causal, scale)
        return gradients(rows, upstream.to(kind), q, k)

    truth, plain = dense(torch.float64), dense(dtype)

    gone = ~valid[:, None, :, None]
    operands = [x.detach().clone().masked_fill_(gone, math.nan) for x in (q_t, k_t, q_s, k_s)]
    if k_s is q_s:
        operands[1], operands[3] = operands[0], operands[2]
    for x in operands[2:]:
        x.requires_grad_()
    rows = attention_kl(
        *operands,
        causal=case.causal,
        temperature=case.temperature,
        mask=None if case.padding == "none" else valid,
        reduction="none",
        implementation=implementation,
    )
    answer = gradients(rows, upstream, *operands[2:])
    assert rows.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if case.padding != "none":
        assert (rows[~valid[:, None].expand_as(rows)] == 0).all()
        for gradient in answer[1:]:
            assert (gradient[gone.expand_as(gradient)] == 0).all()
    floor = 1e-12 if dtype == torch.float64 else 8 * torch.finfo(dtype).eps
    for name, x, p, t in zip(("rows", "dq", "dk"), answer, plain, truth, strict=False):
        budget = max(2 * error(p, t), floor)
        assert error(x, t) <= budget, f"{name}: error {error(x, t):.2e}, budget {budget:.2e}"


def check_identical(implementation: str, dtype=torch.float32, device="cpu"):
    """A student that equals the teacher costs exactly nothing and is left where it is."""
    case = Case(67, 40, heads=4, batch=2)
    q = draw(case, dtype, device)[0]
    k = draw(Case(67, 40, heads=2, batch=2), dtype, device, seed=3)[0]
    for keys in (None, k):
        student = q.clone().requires_grad_()
        if keys is None:
            loss = relation_kl(q, student, implementation=implementation)
            leaves = (student,)
        else:
            leaves = (student, keys.clone().requires_grad_())
            loss = attention_kl(q, keys, *leaves, implementation=implementation)
        assert loss.item() == 0.0
        for gradient in torch.autograd.grad(loss, leaves):
            assert (gradient == 0).all()


def check_repeatable(implementation: str, dtype=torch.float32, device="cpu"):
    """Two runs agree to the bit."""
    for case in (Case(130, 64), Case(130, 64, heads=4, kv_heads=2, batch=2, padding="holes")):
        q_t, k_t, q_s, k_s, valid = draw(case, dtype, device)

        def run(operands=(q_t, k_t, q_s, k_s), valid=valid):
            q, k = (x.detach().clone().requires_grad_() for x in operands[2:])
            rows = attention_kl(
                *operands[:2], q, k, mask=valid, reduction="none", implementation=implementation
            )
            return gradients(rows, torch.ones_like(rows), q, k)

        for first, second in zip(run(), run(), strict=True):
            assert torch.equal(first, second)
