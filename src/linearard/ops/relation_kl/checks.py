"""What ``attention_kl`` refuses before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from linearard.errors import OperandError

_REDUCTIONS = ("mean", "sum", "none")
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Operands(NamedTuple):
    """Operands of a relation, as ``attention_kl`` takes them; a self-relation's k is its q."""

    q_t: Tensor
    k_t: Tensor
    q_s: Tensor
    k_s: Tensor


def check_layer(relations: Mapping[str, Sequence[Tensor]]) -> dict[str, Operands]:
    """Operands of ``layer_relation_kl`` by name.

    Raises:
        OperandError: there are none, or those of a relation or of two relations do not fit together.
    """
    expected = "relations as {name: (teacher, student)} or {name: (q_t, k_t, q_s, k_s)}"
    if not isinstance(relations, Mapping) or not relations:
        got = "no relation" if isinstance(relations, Mapping) else type(relations).__name__
        raise OperandError(expected=expected, got=got, fix="Name at least one, such as 'q'.")
    checked: dict[str, Operands] = {}
    for name, given in relations.items():
        if not isinstance(given, Sequence) or len(given) not in (2, 4):
            count = f" of {len(given)}" if isinstance(given, Sequence) else ""
            raise OperandError(
                expected=expected,
                got=f"{type(given).__name__}{count} for {name!r}",
                fix="Give two tensors of a self-relation, or four of attention.",
            )
        operands = Operands(*(given if len(given) == 4 else [x for x in given for _ in range(2)]))
        check_operands(operands, f" of {name!r}")
        checked[name] = operands
    first, like = next((name, x.q_s) for name, x in checked.items())
    for name, x in checked.items():
        own = (x.q_s.shape[0], x.q_s.shape[2], x.q_s.device)
        if own != (like.shape[0], like.shape[2], like.device):
            raise OperandError(
                expected=f"{name!r} with the batch, tokens and device of {first!r}: "
                f"{like.shape[0]}, {like.shape[2]}, {like.device}",
                got=f"{own[0]}, {own[1]}, {own[2]}",
                fix="Give relations of one layer and one batch, or call relation_kl for each.",
            )
    return checked


def check_operands(relation: Operands, of: str = "") -> None:
    """Refuse operands of ``attention_kl`` that do not fit together; ``of`` names the relation.

    Raises:
        OperandError: shape, dtype or device of one of them.
    """
    q_t, k_t, q_s, k_s = relation
    operands = {f"{name}{of}": x for name, x in relation._asdict().items()}
    for name, x in operands.items():
        if not isinstance(x, Tensor) or x.dim() != 4 or 0 in (x.shape[1], x.shape[3]):
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise OperandError(
                expected=f"{name} to be a tensor [batch, heads, tokens, head_dim], "
                "with a head and a head_dim of at least 1",
                got=str(got),
                fix="Reshape it to four dimensions: x[None, None] for the tokens of one head.",
            )
        if x.layout != torch.strided:
            raise OperandError(
                expected=f"{name} as a dense tensor",
                got=str(x.layout).removeprefix("torch."),
                fix="Pack sequences of several lengths into one and give cu_seqlens, or pad and give "
                "lengths.",
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
    for kind, teacher, student in ((f"queries{of}", q_t, q_s), (f"keys{of}", k_t, k_s)):
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
            got=f"keys {tuple(k_s.shape)} for queries {tuple(q_s.shape)}{of}",
            fix="Pass queries and keys of the same tokens and head_dim, keys before they are repeated.",
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
            fix="Ask for 'none' and reduce the rows as you like.",
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


def scales_of(
    scale: float | Mapping[str, float] | None, relations: Mapping[str, Operands], temperature: float
) -> dict[str, float]:
    """What the products of each relation are multiplied by.

    Raises:
        OperandError: a scale is no finite number above 0, or is named after no relation.
    """
    by_name = scale if isinstance(scale, Mapping) else dict.fromkeys(relations, scale)
    unknown = [name for name in by_name if name not in relations]
    if unknown:
        raise OperandError(
            expected=f"scales by the names of relations: {', '.join(map(repr, relations))}",
            got=repr(unknown[0]),
            fix="Leave out what is no relation of this call.",
        )
    scales = {}
    for name, operands in relations.items():
        own = by_name.get(name)
        own = positive("scale", operands.q_s.shape[-1] ** -0.5 if own is None else own)
        scales[name] = own / temperature
    return scales


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
