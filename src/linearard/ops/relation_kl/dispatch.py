"""From checked operands to reduced losses: which implementation, what runs together, how to add up."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from linearard.errors import OperandError
from linearard.ops.relation_kl import chunked, hopper, reference
from linearard.ops.relation_kl.autograd import LinearMemoryRows, Relation
from linearard.ops.relation_kl.checks import Operands
from linearard.ops.relation_kl.visibility import Visibility

IMPLEMENTATIONS = ("reference", "chunked", "triton", "hopper")
_FUSED = "fused"  # the fastest of the fused kernels that takes a call: hopper, or else triton
_TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_TRITON_MAX_HEAD_DIM = 256
_TOGETHER = 3  # self-relations in one launch


def kl_rows(
    relations: Mapping[str, Operands],
    scales: Mapping[str, float],
    visible: Visibility,
    implementations: Mapping[str, str],
    deterministic: bool,
) -> dict[str, Tensor]:
    """KL of every row [B, H, N] of each relation; implementations as :func:`choose` names them.

    Self-relations that differ in their heads alone are computed together.
    """
    clean = _Clean(visible.valid)
    ready = {name: clean.relation(operands) for name, operands in relations.items()}
    alike: dict[tuple, list[str]] = {}
    for name, relation in ready.items():
        kind = (relation.q_s.dtype, relation.q_s.shape[-1], scales[name])
        alike.setdefault(kind if relation.k_s is None else (name,), []).append(name)
    rows = {}
    for names in alike.values():
        for i in range(0, len(names), _TOGETHER):
            some = names[i : i + _TOGETHER]
            given = [ready[name] for name in some]
            values = _rows_together(
                given, scales[some[0]], visible, implementations[some[0]], deterministic
            )
            rows |= zip(some, values, strict=True)
    return {name: rows[name] for name in relations}


class _Clean:
    """Operands with zeros where tokens are invalid; what two relations share is filled once."""

    def __init__(self, valid: Tensor | None):
        self._gone = None if valid is None else ~valid[:, None, :, None]
        self._filled: dict[int, Tensor] = {}

    def relation(self, operands: Operands) -> Relation:
        """Without gradient for the teacher, and without keys where they are the queries."""
        if operands.k_t is operands.q_t and operands.k_s is operands.q_s:
            operands = operands._replace(k_t=None, k_s=None)
        teacher = (None if x is None else self._fill(x).detach() for x in operands[:2])
        student = (None if x is None else self._fill(x) for x in operands[2:])
        return Relation(*teacher, *student)

    def _fill(self, x: Tensor) -> Tensor:
        if self._gone is None:
            return x
        if id(x) not in self._filled:
            self._filled[id(x)] = x.masked_fill(self._gone, 0.0)
        return self._filled[id(x)]


def _rows_together(
    relations: list[Relation],
    scale: float,
    visible: Visibility,
    implementation: str,
    deterministic: bool,
) -> tuple[Tensor, ...] | list[Tensor]:
    if relations[0].q_s.numel() == 0:  # no rows, but a graph that reaches the student
        return [
            (r.q_s.sum(-1) + (0 if r.k_s is None else r.k_s.sum())).to(
                torch.promote_types(r.q_s.dtype, torch.float32)
            )
            for r in relations
        ]
    if implementation == "reference":
        return [
            reference.kl_rows(
                r.q_t,
                r.q_t if r.k_t is None else r.k_t,
                r.q_s,
                r.q_s if r.k_s is None else r.k_s,
                visible=visible,
                scale=scale,
            )
            for r in relations
        ]
    operands = (x for relation in relations for x in relation)
    if implementation in (_FUSED, "hopper"):
        reason = hopper.unsupported(relations, visible)
        if reason is not None and implementation == "hopper":
            raise OperandError(
                expected="causal relations without invalid tokens, in bfloat16 with head_dim 64 "
                "or 128, on a Hopper GPU for implementation='hopper'",
                got=reason,
                fix="Leave implementation out to get the fastest that fits: here 'triton' or 'chunked'.",
            )
        implementation = "triton" if reason is not None else "hopper"
    if implementation == "hopper":
        kernels = hopper.Kernels(deterministic or torch.are_deterministic_algorithms_enabled())
    else:
        kernels = chunked if implementation == "chunked" else _triton()
    return LinearMemoryRows.apply(kernels, visible, scale, *operands)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton():
    from linearard.ops.relation_kl import triton

    return triton


def reduce_rows(
    rows: Tensor, valid: Tensor | None, weights: Tensor | None, reduction: str
) -> Tensor:
    """Rows [B, H, N] as ``reduction`` of ``attention_kl`` asks; ``weights`` expanded or None."""
    if valid is not None:  # an upstream gradient at an invalid row stops here
        rows = rows.masked_fill(~valid[:, None], 0.0)
    if weights is not None:
        weights = weights.to(rows.dtype)
        rows = rows * weights
    if reduction == "none":
        return rows
    if reduction == "mean" and valid is None and weights is None and rows.numel() > 0:
        return rows.mean()
    total = rows.sum()
    if reduction == "sum" or rows.numel() == 0:
        return total
    if weights is not None:
        weight = weights.sum()
        return total / weight.masked_fill(weight == 0, 1.0)
    return total / (valid.sum() * rows.shape[1]).clamp_min(1)


def choose(implementation: str | None, student: Tensor) -> str:
    """The implementation asked for, or the fastest that fits a student's operand.

    Raises:
        OperandError: it is unknown, or does not take such operands.
    """
    head_dim, dtype, device = student.shape[-1], student.dtype, student.device
    has_triton = _has_triton()
    fits = dtype in _TRITON_DTYPES and head_dim <= _TRITON_MAX_HEAD_DIM
    nvidia = device.type == "cuda" and torch.version.hip is None
    if implementation is None:
        return _FUSED if has_triton and fits and nvidia else "chunked"
    if implementation not in IMPLEMENTATIONS:
        raise OperandError(
            expected="implementation None, 'reference', 'chunked', 'triton' or 'hopper'",
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
        if not nvidia and not _triton().interpreted():
            raise OperandError(
                expected="tensors on an NVIDIA GPU for implementation='triton'",
                got=f"tensors on {device}",
                fix="Move them to 'cuda', or ask for implementation='chunked'.",
            )
    return implementation
