"""The specification: dense, short, plain autograd. Needs B * H * N * N numbers a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from linearard.ops.relation_kl.visibility import Visibility


def kl_rows(
    q_t: Tensor, k_t: Tensor, q_s: Tensor, k_s: Tensor, *, visible: Visibility, scale: float
) -> Tensor:
    """KL(P_teacher || P_student) of every row, [B, H, N]; 0 in rows of invalid tokens.

    Shapes as in :func:`linearard.ops.relation_kl.attention_kl`, N at least 1.
    Works in float32, in float64 where the inputs are.
    """
    heads = q_s.shape[1]
    seen = _seen(visible, q_s.shape[2], q_s.device)

    def shifted_scores(q: Tensor, k: Tensor) -> Tensor:
        dtype = torch.promote_types(q.dtype, torch.float32)
        k = k.repeat_interleave(heads // k.shape[1], dim=1)
        scores = q.to(dtype) @ k.to(dtype).mT * scale
        # finite, so that 0 * (hidden - hidden) is 0
        scores = scores.masked_fill(~seen, -1e30)
        return scores - scores.detach().amax(-1, keepdim=True)

    s_t, s_s = shifted_scores(q_t, k_t), shifted_scores(q_s, k_s)
    lse_t, lse_s = s_t.logsumexp(-1), s_s.logsumexp(-1)
    # in this form the gradient P_s - P_t is a difference of two equal numbers for equal models
    p_t = (s_t - lse_t[..., None]).exp()
    rows = (p_t * (s_t - s_s)).sum(-1) - (lse_t - lse_s)
    if visible.valid is None:
        return rows
    return rows.masked_fill(~visible.valid[:, None], 0.0)


def _seen(visible: Visibility, tokens: int, device: torch.device) -> Tensor:
    """bool [B or 1, 1, N, N], row by column."""
    at = torch.arange(tokens, device=device)
    row, column = at[:, None], at[None, :]
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=device)
    if visible.causal:
        seen &= column <= row
    if visible.window is not None:
        seen &= (row - column).abs() < visible.window
    if visible.cu_seqlens is not None:
        document = torch.bucketize(at, visible.cu_seqlens, right=True)
        seen &= document[:, None] == document[None, :]
    seen = seen[None, None]
    if visible.valid is not None:
        seen = seen & visible.valid[:, None, None, :]
    return seen
