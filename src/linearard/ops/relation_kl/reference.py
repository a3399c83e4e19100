"""The specification: dense, short, plain autograd. Needs B * H * N * N numbers a matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_rows(
    q_t: Tensor,
    k_t: Tensor,
    q_s: Tensor,
    k_s: Tensor,
    *,
    valid: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    """KL(P_teacher || P_student) of every row, [B, H, N]; 0 in rows of invalid tokens.

    Shapes as in :func:`linearard.ops.relation_kl.attention_kl`; ``valid`` is bool [B, N] or None.
    Works in float32, in float64 where the inputs are.
    """
    batch, heads, tokens, _ = q_s.shape
    visible = torch.ones(batch, 1, tokens, tokens, dtype=torch.bool, device=q_s.device)
    if causal:
        visible = visible.tril()
    if valid is not None:
        visible = visible & valid[:, None, None, :]

    def log_probability(q: Tensor, k: Tensor) -> Tensor:
        dtype = torch.promote_types(q.dtype, torch.float32)
        k = k.repeat_interleave(heads // k.shape[1], dim=1)
        scores = q.to(dtype) @ k.to(dtype).mT * scale
        # finite, so that 0 * (hidden - hidden) is 0
        return scores.masked_fill(~visible, torch.finfo(dtype).min).log_softmax(-1)

    log_t, log_s = log_probability(q_t, k_t), log_probability(q_s, k_s)
    rows = (log_t.exp() * (log_t - log_s)).sum(-1)
    return rows if valid is None else rows.masked_fill(~valid[:, None], 0.0)
