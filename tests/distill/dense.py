"""The losses written out densely in float64, independent of the package: what the tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor


def capture(restorable, view, ids, mask=None):
    """Operands of every layer in a view, with their graph where gradients are on."""
    seen = []
    with restorable.view(view) as model, restorable.tap.observing(seen.append):
        output = model(input_ids=ids, attention_mask=mask, use_cache=False)
    return seen, output.logits


def row_kl(q_t, k_t, q_s, k_s, scale, mask=None, window=None) -> Tensor:
    """KL(teacher || student) of each row, [batch, heads, tokens]."""
    tokens = q_t.shape[-2]
    hidden = torch.ones(tokens, tokens).triu(1).bool()[None, None]
    if window is not None:
        hidden = hidden | torch.ones(tokens, tokens).tril(-window).bool()
    if mask is not None:
        hidden = hidden | ~mask.bool()[:, None, None, :]

    def log_p(q, k):
        k = k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        return (q.double() @ k.mT * scale).masked_fill(hidden, -torch.inf).log_softmax(-1)

    log_t, log_s = log_p(q_t, k_t), log_p(q_s, k_s)
    return torch.where(hidden, 0.0, log_t.exp() * (log_t - log_s).nan_to_num()).sum(-1)


def mean_over_valid(rows, mask=None) -> Tensor:
    """Mean over valid rows and heads."""
    if mask is None:
        return rows.mean()
    kept = mask.bool()[:, None].expand_as(rows)
    return rows[kept].mean()


def relation_terms(
    teacher,
    student,
    relations,
    *,
    layer_weights=None,
    temperature=1.0,
    mask=None,
    normalisation="own",
) -> dict[str, Tensor]:
    """Unweighted `relation_*` terms; `layer_weights` by layer, normalised here."""
    layer_weights = layer_weights or {a.layer: 1.0 for a in teacher}
    total = sum(layer_weights.values())
    terms = {}
    for name in relations:
        term = torch.zeros((), dtype=torch.float64)
        for t, s in zip(teacher, student, strict=True):
            if t.layer not in layer_weights:
                continue
            if name == "qk":
                operands = (t.query, t.key, s.query, s.key)
                scale = s.scaling
            else:
                letter = {"q": "query", "k": "key", "v": "value"}[name]
                x_t, x_s = getattr(t, letter), getattr(s, letter)
                operands, scale = (x_t, x_t, x_s, x_s), x_s.shape[-1] ** -0.5
            rows = row_kl(
                *(x if i > 1 else x.detach() for i, x in enumerate(operands)),
                scale / temperature,
                mask,
                s.sliding_window,
            )
            own = mean_over_valid(rows, mask)
            if (
                normalisation == "paper"
            ):  # the sum over own heads, divided by the number of query heads
                own = own * rows.shape[1] / s.query.shape[1]
            term = term + layer_weights[t.layer] / total * own
        terms[f"relation_{name}"] = term
    return terms


def next_token(logits, ids, mask=None) -> Tensor:
    """Mean cross-entropy of the tokens that are no padding, in nats."""
    log_p = logits[:, :-1].double().log_softmax(-1)
    losses = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
    return losses.mean() if mask is None else losses[mask[:, 1:].bool()].mean()


def logit_kl(teacher, student, positions, mask=None) -> Tensor:
    """Mean KL(teacher || student) of the output distributions at the last positions."""
    log_t = teacher[:, -positions:].double().log_softmax(-1)
    log_s = student[:, -positions:].double().log_softmax(-1)
    rows = (log_t.exp() * (log_t - log_s)).sum(-1)
    return rows.mean() if mask is None else rows[mask[:, -positions:].bool()].mean()


def gradients(restorable, loss) -> dict[str, Tensor]:
    """Gradient of every trained weight, zeros where the loss does not reach it; then cleared."""
    loss.backward()
    found = {}
    for name, parameter in restorable.model.named_parameters():
        if parameter.requires_grad:
            found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = None
    return found


def assert_same_gradients(got, expected, rtol=1e-4) -> None:
    """Relative to the largest entry of each gradient."""
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=rtol * scale + 1e-9, msg=name)
