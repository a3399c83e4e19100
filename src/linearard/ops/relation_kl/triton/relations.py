"""Several relations in one launch: their heads stand one after the other in the grid.

Relations of few heads, such as those of grouped keys and values, leave most of a GPU idle when they
are launched alone. Kernels take tuples with an entry a relation; a program picks its own by its
head. One relation costs no instruction. Host descriptors cannot stand in a tuple (Triton 3.6), so
the operands that they read are arguments of their own.
"""

from __future__ import annotations

from itertools import accumulate

import triton
import triton.language as tl
from torch import Tensor

from linearard.ops.relation_kl.triton.tiles import descriptor

MOST = 3  # relations of a launch: arguments of the kernels


def strides(operands: list[Tensor]) -> tuple[int, ...]:
    """Strides of batch, head and token of each of ``operands`` [B, H, N, D]."""
    return tuple(step for x in operands for step in x.stride()[:3])


def first_heads(operands: list[Tensor]) -> tuple[int, ...]:
    """Where each relation's B * H heads begin in the grid."""
    return (0, *accumulate(x.shape[0] * x.shape[1] for x in operands[:-1]))


def swept(
    teachers: list[Tensor], students: list[Tensor], tokens: int, tma: bool
) -> list[object | None]:
    """What the tiles of ``tokens`` tokens are read through, teacher and student in turn: 2 * MOST."""
    each = [x for pair in zip(teachers, students, strict=True) for x in pair]
    read = [descriptor(x, tokens) if tma else x for x in each]
    return read + [None] * (2 * MOST - len(read))


@triton.jit
def pick(values, starts, head, AT: tl.constexpr, STEP: tl.constexpr):
    """``values[STEP * r + AT]`` of the relation r that ``head`` of the grid belongs to."""
    chosen = values[AT]
    for r in tl.static_range(1, len(starts)):
        chosen = tl.where(head >= starts[r], values[STEP * r + AT], chosen)
    return chosen


@triton.jit
def pick_swept(first, second, third, starts, head):
    """The same of pointers or descriptors."""
    chosen = first
    if len(starts) > 1:  # noqa: SIM102 - decided when the kernel is compiled
        if head >= starts[1]:
            chosen = second
    if len(starts) > 2:  # noqa: SIM102
        if head >= starts[2]:
            chosen = third
    return chosen


@triton.jit
def steps(strides, starts, head):
    """Strides of batch, head and token."""
    return (
        pick(strides, starts, head, 0, 3),
        pick(strides, starts, head, 1, 3),
        pick(strides, starts, head, 2, 3),
    )
