"""What ``attention_kl`` refuses before anything is computed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from linearard.errors import OperandError

_REDUCTIONS = ("mean", "sum", "none")
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def check_operands(q_t: Tensor, k_t: Tensor, q_s: Tensor, k_s: Tensor) -> None:
    """Refuse operands of ``attention_kl`` that do not fit together.

    Raises:
        OperandError: shape, dtype or device of one of them.
    """
    operands = {"q_t": q_t, "k_t": k_t, "q_s": q_s, "k_s": k_s}
    for name, x in operands.items():
        if not isinstance(x, Tensor) or x.dim() != 4 or 0 in (x.shape[1], x.shape[3]):
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise OperandError(
                expected=f"{name} to be a tensor [batch, heads, tokens, head_dim], "
                "with a head and a head_dim of at least 1",
                got=str(got),
                fix="Reshape it to four dimensions.",
            )
        if x.dtype not in _DTYPES:
            raise OperandError(
                expected=f"{name} in bfloat16, float16, float32 or float64",
                got=str(x.dtype).removeprefix("torch."),
                fix="Cast it, bfloat16 being the nearest for training.",
            )
        if x.dtype != q_s.dtype or x.device != q_s.device:
            raise OperandError(
                expected=f"{name} like q_s ({q_s.dtype} on {q_s.device})",
                got=f"{x.dtype} on {x.device}",
                fix="Bring teacher and student to one dtype and device.",
            )
    for kind, teacher, student in (("queries", q_t, q_s), ("keys", k_t, k_s)):
        if teacher.shape != student.shape:
            raise OperandError(
                expected=f"{kind} of one shape in teacher and student",
                got=f"{tuple(teacher.shape)} and {tuple(student.shape)}",
                fix="Capture the same layer and the same tokens of both models.",
            )
    (b_q, heads, n_q, d_q), (b_k, kv_heads, n_k, d_k) = q_s.shape, k_s.shape
    if (b_q, n_q, d_q) != (b_k, n_k, d_k) or heads % kv_heads:
        raise OperandError(
            expected="keys [B, Hkv, N, D] for queries [B, H, N, D] with H a multiple of Hkv",
            got=f"keys {tuple(k_s.shape)} for queries {tuple(q_s.shape)}",
            fix="Pass queries and keys of the same tokens, keys before they are repeated.",
        )


def check_reduction(reduction: str) -> None:
    """Refuse an unknown reduction.

    Raises:
        OperandError: it is none of the three.
    """
    if reduction not in _REDUCTIONS:
        raise OperandError(
            expected="reduction 'mean', 'sum' or 'none'",
            got=repr(reduction),
            fix="Choose one of the three.",
        )


def positive(name: str, value: float) -> float:
    """``value`` as a float.

    Raises:
        OperandError: it is no finite number above 0.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (number > 0 and math.isfinite(number)):
        raise OperandError(
            expected=f"{name} to be a finite number above 0",
            got=repr(value),
            fix=f"Leave {name} out for its default.",
        )
    return number


def expanded_weights(weights: Tensor, student: Tensor, valid: Tensor | None) -> Tensor:
    """``weights`` as [B, H, N] on the student's device, without gradient, 0 in invalid rows.

    Values are checked where they lie on the CPU.

    Args:
        weights: floating point, broadcasts to [B, H, N].
        student: [B, H, N, D].
        valid: bool [B, N] on the student's device, or None.

    Raises:
        OperandError: of another type or shape, or one that counts is negative or not finite.
    """
    rows = student.shape[:3]
    expected = f"row_weights as a floating-point tensor that broadcasts to {tuple(rows)}"
    fix = "Give [batch, heads, tokens], with 1 where all share a weight: [batch, 1, tokens]."
    if not isinstance(weights, Tensor):
        raise OperandError(expected=expected, got=type(weights).__name__, fix=fix)
    if not weights.dtype.is_floating_point:
        raise OperandError(expected=expected, got=str(weights.dtype), fix="Pass weights.float().")
    if weights.dim() != 3 or any(w not in (1, n) for w, n in zip(weights.shape, rows, strict=True)):
        raise OperandError(expected=expected, got=f"shape {tuple(weights.shape)}", fix=fix)
    expanded = weights.detach().to(student.device).expand(rows)
    if valid is not None:
        expanded = expanded.masked_fill(~valid[:, None], 0.0)
    if expanded.device.type == "cpu":
        wrong = ~(expanded.isfinite() & (expanded >= 0))
        if wrong.any():
            raise OperandError(
                expected="row_weights of 0 or more, all finite",
                got=str(expanded[wrong][0].item()),
                fix="Give 0 to a row that is not to count.",
            )
    return expanded
