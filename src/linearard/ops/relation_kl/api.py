"""The one door to the relation KL: check the operands, choose an implementation, reduce."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from linearard.errors import OperandError
from linearard.ops.relation_kl import chunked, reference
from linearard.ops.relation_kl.autograd import LinearMemoryRows

_IMPLEMENTATIONS = ("reference", "chunked", "triton")
_REDUCTIONS = ("mean", "sum", "none")
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_TRITON_DTYPES = _DTYPES[:3]
_TRITON_MAX_HEAD_DIM = 256


def relation_kl(
    teacher: Tensor,
    student: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    temperature: float = 1.0,
    lengths: Tensor | Sequence[int] | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
    implementation: str | None = None,
) -> Tensor:
    """KL between the self-relations of two models: each head attends to itself, q = k.

    Args:
        teacher: [B, H, N, D], one of the queries, keys or values as attention consumes them.
        student: the same of the student; gradients flow to it alone.
        causal: as in :func:`attention_kl`, like all that follow.
        scale: default ``D ** -0.5``.
        temperature: divides both scores.
        lengths: [B] valid tokens at the start of each sequence.
        mask: bool [B, N], True where the token is valid.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        implementation: ``"reference"``, ``"chunked"``, ``"triton"`` or None.

    Returns:
        What :func:`attention_kl` returns.

    Raises:
        OperandError: as :func:`attention_kl`.
    """
    return attention_kl(
        teacher,
        teacher,
        student,
        student,
        causal=causal,
        scale=scale,
        temperature=temperature,
        lengths=lengths,
        mask=mask,
        reduction=reduction,
        implementation=implementation,
    )


def attention_kl(
    q_t: Tensor,
    k_t: Tensor,
    q_s: Tensor,
    k_s: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    temperature: float = 1.0,
    lengths: Tensor | Sequence[int] | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
    implementation: str | None = None,
) -> Tensor:
    """KL(teacher || student) between the attention distributions of two models, row by row.

    Row i of a head is ``softmax_j(scale / temperature * <q_i, k_j>)`` over the valid columns j,
    with ``causal`` those up to i. A row counts if its own token is valid. What invalid tokens
    hold never matters, NaN included.

    Args:
        q_t: teacher queries [B, H, N, D] in bfloat16, float16, float32 or float64.
        k_t: teacher keys [B, Hkv, N, D]; H is a multiple of Hkv, and query head h reads key
            head ``h // (H // Hkv)``.
        q_s: student queries, as ``q_t``. Gradients flow to ``q_s`` and ``k_s`` alone.
        k_s: student keys, as ``k_t``.
        causal: rows see columns up to themselves; otherwise all of them.
        scale: of the scores; default ``D ** -0.5``.
        temperature: divides both scores.
        lengths: int [B], valid tokens at the start of each sequence. Values are checked where
            that needs no wait for a device; on a device, longer than N means N.
        mask: bool [B, N], True where the token is valid, in any pattern.
        reduction: ``"mean"`` over valid rows and heads (0 if there are none), ``"sum"``, or
            ``"none"``: [B, H, N] with 0 in the rows that do not count.
        implementation: ``"reference"`` (dense), ``"chunked"`` (linear memory, any device),
            ``"triton"`` (NVIDIA GPU, head_dim <= 256, not float64), or None for the fastest
            that fits.

    Returns:
        Nats, in float32 (float64 for float64 operands).

    Raises:
        OperandError: operands or options do not fit together, or the implementation asked for
            cannot take them.
    """
    _check_operands(q_t, k_t, q_s, k_s)
    batch, _, tokens, head_dim = q_s.shape
    scale = _positive("scale", head_dim**-0.5 if scale is None else scale)
    scale = scale / _positive("temperature", temperature)
    valid = _valid_tokens(lengths, mask, batch, tokens, q_s.device)
    if reduction not in _REDUCTIONS:
        raise OperandError(
            expected="reduction 'mean', 'sum' or 'none'",
            got=repr(reduction),
            fix="Choose one of the three.",
        )
    implementation = _choose(implementation, q_s)

    self_relation = k_t is q_t and k_s is q_s
    q_t, k_t = q_t.detach(), k_t.detach()
    if valid is not None:
        gone = ~valid[:, None, :, None]
        q_t, q_s = q_t.masked_fill(gone, 0.0), q_s.masked_fill(gone, 0.0)
        if not self_relation:
            k_t, k_s = k_t.masked_fill(gone, 0.0), k_s.masked_fill(gone, 0.0)
    if self_relation:
        k_t, k_s = q_t, q_s

    with torch.autocast(q_s.device.type, enabled=False):
        if implementation == "reference":
            rows = reference.kl_rows(q_t, k_t, q_s, k_s, valid=valid, causal=causal, scale=scale)
        else:
            if self_relation:
                k_t = k_s = None
            rows = LinearMemoryRows.apply(
                _linear_memory(implementation), q_t, k_t, q_s, k_s, valid, causal, scale
            )
        return _reduce(rows, valid, reduction)


def _reduce(rows: Tensor, valid: Tensor | None, reduction: str) -> Tensor:
    if valid is not None:  # an upstream gradient at an invalid row stops here
        rows = rows.masked_fill(~valid[:, None], 0.0)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    if valid is None:
        return rows.mean()
    return rows.sum() / (valid.sum() * rows.shape[1]).clamp_min(1)


def _linear_memory(implementation: str):
    if implementation == "chunked":
        return chunked
    from linearard.ops.relation_kl import triton

    return triton


def _choose(implementation: str | None, student: Tensor) -> str:
    head_dim, dtype, device = student.shape[-1], student.dtype, student.device
    has_triton = importlib.util.find_spec("triton") is not None
    fits = dtype in _TRITON_DTYPES and head_dim <= _TRITON_MAX_HEAD_DIM
    nvidia = device.type == "cuda" and torch.version.hip is None
    if implementation is None:
        return "triton" if has_triton and fits and nvidia else "chunked"
    if implementation not in _IMPLEMENTATIONS:
        raise OperandError(
            expected="implementation None, 'reference', 'chunked' or 'triton'",
            got=repr(implementation),
            fix="Leave it out to get the fastest that fits.",
        )
    if implementation == "triton":
        if not has_triton:
            raise OperandError(
                expected="Triton for implementation='triton'",
                got="an environment without it",
                fix="Install triton, or ask for implementation='chunked'.",
            )
        if dtype not in _TRITON_DTYPES:
            raise OperandError(
                expected="bfloat16, float16 or float32 for implementation='triton'",
                got=str(dtype).removeprefix("torch."),
                fix="Cast to float32, or ask for implementation='chunked'.",
            )
        if head_dim > _TRITON_MAX_HEAD_DIM:
            raise OperandError(
                expected=f"head_dim up to {_TRITON_MAX_HEAD_DIM} for implementation='triton'",
                got=f"head_dim {head_dim}",
                fix="Ask for implementation='chunked', which takes any head_dim.",
            )
        if not nvidia and not _interpreted():
            raise OperandError(
                expected="tensors on an NVIDIA GPU for implementation='triton'",
                got=f"tensors on {device}",
                fix="Move them to 'cuda', or ask for implementation='chunked'.",
            )
    return implementation


def _interpreted() -> bool:
    from triton import knobs

    return knobs.runtime.interpret


def _check_operands(q_t: Tensor, k_t: Tensor, q_s: Tensor, k_s: Tensor) -> None:
    operands = {"q_t": q_t, "k_t": k_t, "q_s": q_s, "k_s": k_s}
    for name, x in operands.items():
        if not isinstance(x, Tensor) or x.dim() != 4 or 0 in x.shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise OperandError(
                expected=f"{name} to be a tensor [batch, heads, tokens, head_dim], none of them 0",
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


def _positive(name: str, value: float) -> float:
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


def _valid_tokens(
    lengths: Tensor | Sequence[int] | None,
    mask: Tensor | None,
    batch: int,
    tokens: int,
    device: torch.device,
) -> Tensor | None:
    """Bool [B, N] on ``device``, or None where every token is valid."""
    if lengths is not None and mask is not None:
        raise OperandError(
            expected="lengths or mask", got="both", fix="Fold the lengths into the mask."
        )
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise OperandError(
                expected="mask as a bool tensor",
                got=str(got),
                fix="Pass attention_mask.bool(), True where the token is valid.",
            )
        if mask.shape != (batch, tokens):
            raise OperandError(
                expected=f"mask of shape {(batch, tokens)}",
                got=str(tuple(mask.shape)),
                fix="Give one value a token; the causal part is what causal=True adds.",
            )
        return mask.to(device)
    if lengths is None:
        return None
    lengths = torch.as_tensor(lengths)
    if lengths.dtype.is_floating_point or lengths.dtype == torch.bool or lengths.shape != (batch,):
        raise OperandError(
            expected=f"lengths as {batch} integers",
            got=f"{lengths.dtype} of shape {tuple(lengths.shape)}",
            fix="Give the number of valid tokens of each sequence.",
        )
    if lengths.device.type == "cpu" and not ((lengths >= 0) & (lengths <= tokens)).all():
        raise OperandError(
            expected=f"lengths from 0 to {tokens}",
            got=str(lengths.tolist()),
            fix="Give the number of valid tokens of each sequence.",
        )
    return torch.arange(tokens, device=device) < lengths.to(device)[:, None]
