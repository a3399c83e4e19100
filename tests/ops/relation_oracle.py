"""Float64 answers that share no code with the package, and the error that plain PyTorch makes.

Operands are drawn, rounded to the dtype of the test, and only then promoted: the budget is what
the same formula costs when it runs in that dtype on that device, twice.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from itertools import pairwise

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
    window: int | None = None
    documents: tuple[int, ...] | None = None  # their lengths
    padding: str = "none"  # right, left, holes, all
    weights: tuple[bool, bool, bool] | None = None  # which of batch, heads, tokens have their own
    temperature: float = 1.0
    amplitude: float = 1.0  # of the operands; 40 gives scores of about 10,000
    strided: bool = False
    seed: int = 0

    def __str__(self) -> str:
        kind = "self" if self.kv_heads is None else f"{self.heads}over{self.kv_heads}"
        parts = [kind, f"n{self.tokens}", f"d{self.head_dim}", "causal" if self.causal else "full"]
        parts += [f"w{self.window}"] * (self.window is not None)
        parts += ["packed"] * (self.documents is not None)
        parts += [self.padding] * (self.padding != "none") + ["strided"] * self.strided
        parts += ["weighted"] * (self.weights is not None) + ["large"] * (self.amplitude > 10)
        return "-".join(parts)

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5 / self.temperature

    @property
    def cu_seqlens(self) -> list[int] | None:
        if self.documents is None:
            return None
        return [sum(self.documents[:d]) for d in range(len(self.documents) + 1)]

    def seen(self, valid):
        """Bool [B, 1, N, N], row by column, on the device of ``valid`` [B, N]."""
        n = self.tokens
        seen = torch.zeros(n, n, dtype=torch.bool)
        for start, end in pairwise(self.cu_seqlens or [0, n]):
            seen[start:end, start:end] = True
        reach = n if self.window is None else self.window
        for i in range(n):
            seen[i, : max(0, i - reach + 1)] = False
            seen[i, i + 1 if self.causal else i + reach :] = False
        seen = seen.to(valid.device)
        return (seen & valid[:, None, :] & valid[:, :, None])[:, None]

    def options(self, valid):
        """Keyword arguments of ``attention_kl``; without weights."""
        return {
            "causal": self.causal,
            "window": self.window,
            "cu_seqlens": None if self.documents is None else torch.tensor(self.cu_seqlens),
            "temperature": self.temperature,
            "mask": None if self.padding == "none" else valid,
        }


def rows_by_loops(q_t, k_t, q_s, k_s, sees, scale):
    """The definition, one number at a time; ``sees(b, i, j)``; [B][H][N] as a float64 tensor."""
    batch, heads, tokens, _ = q_t.shape
    group = heads // k_t.shape[1]
    out = torch.zeros(batch, heads, tokens, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(tokens):
                columns = [j for j in range(tokens) if sees(b, i, j)]
                if not columns:
                    continue
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


def dense_rows(q_t, k_t, q_s, k_s, seen, scale):
    """The same with torch.softmax in the dtype of the operands, differentiable."""
    group = q_t.shape[1] // k_t.shape[1]
    lowest = torch.finfo(q_t.dtype).min

    def log_p(q, k):
        scores = q @ k.repeat_interleave(group, 1).transpose(-1, -2) * scale
        return torch.log_softmax(torch.where(seen, scores, lowest), -1)

    teacher, student = log_p(q_t, k_t), log_p(q_s, k_s)
    gap = torch.where(seen, teacher - student, 0)
    return (torch.exp(teacher) * gap).sum(-1)


def magnitudes(q_t, k_t, q_s, k_s, seen, scale, upstream):
    """What the terms of rows, dq and dk add up to without their signs, in float64.

    An error of ``eps`` in each probability moves the result by up to ``eps`` times this.
    """
    group = q_t.shape[1] // k_t.shape[1]
    q_t, k_t, q_s, k_s = (x.detach().double() for x in (q_t, k_t, q_s, k_s))
    k_t, k_s = (k.repeat_interleave(group, 1) for k in (k_t, k_s))

    def log_p(q, k):
        return torch.log_softmax(torch.where(seen, q @ k.mT * scale, -1e300), -1)

    teacher, student = log_p(q_t, k_t), log_p(q_s, k_s)
    p_t, p_s = (torch.where(seen, x.exp(), 0) for x in (teacher, student))
    rows = (p_t * (1 + torch.where(seen, teacher - student, 0).abs())).sum(-1)
    weight = (p_t + p_s) * upstream.double().abs()[..., None] * scale
    dq = weight @ k_s.abs()
    dk = (weight.mT @ q_s.abs()).unflatten(1, (-1, group)).sum(2)
    return rows, dq, dk


def draw(case: Case, dtype, device):
    """q_t, k_t, q_s, k_s in ``dtype`` (k is q for a self-relation) and valid [B, N]."""
    generator = torch.Generator().manual_seed(case.seed)

    def tensor(heads):
        shape = (case.batch, heads, case.tokens, case.head_dim)
        if case.strided:  # [B, N, H, D] as projections leave it, inside a larger buffer
            b, h, n, d = shape
            wide = torch.randn(b, n, h, 2 * d, generator=generator) * case.amplitude
            return wide.to(device, dtype)[..., :d].transpose(1, 2)
        return (torch.randn(shape, generator=generator) * case.amplitude).to(device, dtype)

    def near(x):
        noise = torch.randn(x.shape, generator=generator).to(device)
        y = x.clone()  # keeps the order of the strides
        return y.copy_(x.float() + 0.3 * case.amplitude * noise)

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
        elif case.padding == "all":
            valid[b] = b > 0
    return q_t, k_t, q_s, k_s, valid.to(device)


def draw_weights(case: Case, device):
    """float32, [batch or 1, heads or 1, tokens or 1], a fifth of them 0."""
    sizes = (case.batch, case.heads, case.tokens)
    shape = [n if own else 1 for n, own in zip(sizes, case.weights, strict=True)]
    generator = torch.Generator().manual_seed(case.seed + 1)
    weights = torch.rand(shape, generator=generator) * 3
    return (weights * (torch.rand(shape, generator=generator) > 0.2)).to(device)


@contextlib.contextmanager
def poisoned_buffers():
    """Buffers come full of NaN, or of the largest integer: what a kernel does not write shows."""

    def poisoned(make):
        def made(*args, **kwargs):
            x = make(*args, **kwargs)
            return x.fill_(math.nan if x.is_floating_point() else torch.iinfo(x.dtype).max)

        return made

    empty, new_empty = torch.empty, torch.Tensor.new_empty
    torch.empty, torch.Tensor.new_empty = poisoned(empty), poisoned(new_empty)
    try:
        yield
    finally:
        torch.empty, torch.Tensor.new_empty = empty, new_empty


def gradients(rows, upstream, q_s, k_s):
    """Rows, then the gradients of q_s and k_s (of q_s alone where they are one tensor)."""
    leaves = (q_s,) if k_s is q_s else (q_s, k_s)
    return (rows.detach(), *torch.autograd.grad(rows, leaves, upstream))


def distance(x, truth):
    """Norm of the difference; infinite where x is not finite."""
    return (x.double() - truth).norm().item() if torch.isfinite(x).all() else math.inf


def check(
    case: Case,
    implementation: str,
    dtype=torch.float32,
    device="cpu",
    repeats=0,
    deterministic=True,
):
    """Values and gradients within twice the error of plain PyTorch; poison where none may look.

    Exactly 0 is what invalid tokens and rows of one column give, and ``repeats`` more runs agree
    with the first to the bit.
    """
    q_t, k_t, q_s, k_s, valid = draw(case, dtype, device)
    seen = case.seen(valid)
    generator = torch.Generator().manual_seed(case.seed + 2)
    upstream = torch.randn(q_t.shape[:3], generator=generator).to(device)
    weights = None if case.weights is None else draw_weights(case, device)

    def dense(kind):
        t = [x.detach().to(kind) for x in (q_t, k_t)]
        q = q_s.detach().to(kind, copy=True).requires_grad_()
        k = q if k_s is q_s else k_s.detach().to(kind, copy=True).requires_grad_()
        rows = dense_rows(*t, q, k, seen, case.scale)
        if weights is not None:
            rows = rows * weights.to(kind)
        return gradients(rows, upstream.to(kind), q, k)

    truth, plain = dense(torch.float64), dense(dtype)
    largest_score = q_t.double().pow(2).sum(-1).amax().item() * case.scale
    scaled = upstream if weights is None else upstream * weights
    sizes = magnitudes(q_t, k_t, q_s, k_s, seen, case.scale, scaled)
    if weights is not None:
        sizes = (sizes[0] * weights, *sizes[1:])
    if k_s is q_s:
        sizes = (sizes[0], sizes[1] + sizes[2])

    gone = ~valid[:, None, :, None]
    hidden_row = ~valid[:, None].expand(upstream.shape)
    poison = (math.nan, math.inf, -math.inf, math.nan)
    operands = [
        x.detach().clone().masked_fill_(gone, p)
        for x, p in zip((q_t, k_t, q_s, k_s), poison, strict=True)
    ]
    if k_s is q_s:
        operands[1], operands[3] = operands[0], operands[2]
    for x in operands[2:]:
        x.requires_grad_()
    if weights is not None and case.weights[0] and case.weights[2]:
        weights = weights.masked_fill(~valid[:, None], math.nan)
    upstream = upstream.masked_fill(hidden_row, math.nan)

    def run():
        with poisoned_buffers():
            rows = attention_kl(
                *operands,
                **case.options(valid),
                row_weights=weights,
                reduction="none",
                deterministic=deterministic,
                implementation=implementation,
            )
            return gradients(rows, upstream, *operands[2:])

    answer = run()
    assert answer[0].dtype == torch.promote_types(dtype, torch.float32)
    assert (answer[0][hidden_row] == 0).all()
    for gradient in answer[1:]:
        assert (gradient[gone.expand_as(gradient)] == 0).all()
    alone = (seen.sum(-1) == 1).expand(upstream.shape)
    assert (answer[0][alone] == 0).all(), "a row of one column is not exactly 0"

    for name, x, p, t, size in zip(("rows", "dq", "dk"), answer, plain, truth, sizes, strict=False):
        # Where rows see few columns, or one column has all the probability, plain PyTorch rounds once
        # or not at all: there the largest score minus itself is 0. The kernels take both steps in one
        # multiply-add, which leaves that score's rounding in all exponentials of the row alike; it goes
        # when they are divided by their sum, of which float32 and exp2 keep an error. No result is better
        # than its probabilities: each is granted 2^-22, the error of a GPU's exp2, or in float32, with
        # scores of 10,000 each off by its own rounding, a unit in the last place of the largest score.
        budget = 0.0
        if dtype != torch.float64:
            large = dtype == torch.float32 and case.amplitude > 10
            units = max(2.0, largest_score if large else 0.0)
            budget = torch.finfo(torch.float32).eps * units * size.norm().item()
        floor = 8 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-12
        budget = max(budget, 2 * distance(p, t), floor * t.norm().item())
        assert distance(x, t) <= budget, (
            f"{name}: off by {distance(x, t):.2e} of {t.norm():.2e}, allowed {budget:.2e}"
        )
    for _ in range(repeats):
        for first, other in zip(answer, run(), strict=True):
            assert torch.equal(first, other), "two runs differ"


def check_identical(case: Case, implementation: str, dtype=torch.float32, device="cpu"):
    """A student that equals the teacher costs exactly nothing and is left where it is."""
    q, k, _, _, valid = draw(case, dtype, device)
    student = q.clone().requires_grad_()
    options = {**case.options(valid), "implementation": implementation}
    if case.kv_heads is None:
        leaves = (student,)
        loss = relation_kl(q, student, **options)
    else:
        leaves = (student, k.clone().requires_grad_())
        loss = attention_kl(q, k, *leaves, **options)
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, leaves):
        assert (gradient == 0).all()
