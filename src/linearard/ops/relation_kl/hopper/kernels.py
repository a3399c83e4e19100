"""Forward and backward from the host: buffers, arguments, launches."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from linearard.ops.relation_kl.autograd import Relation
from linearard.ops.relation_kl.hopper import driver
from linearard.ops.relation_kl.hopper.compiler import nvrtc
from linearard.ops.relation_kl.visibility import Visibility

HEAD_DIMS = (64, 128)
_LOG2_E = 1.4426950408889634
_TOKENS = 64  # of a forward's tile
_FINISHED = 64 * 32  # of the sums, by one block
_THREADS = {"forward": 512, "backward": 384}
_ROWS = {"forward": 192, "backward": 128}  # of a block
_SLACK = 1024 + 256  # bytes of shared memory: alignment and barriers
_CACHE_BYTES = 32 << 20  # of the 50 MB second-level cache
_WORKSPACE_BYTES = 1 << 30  # of float32 sums at a time
_MOST = 3  # relations of a launch
_ORDER_PAYS = (28, 4096)  # heads and tokens from which order costs nothing, at head_dim 128
_ABSENT = 2**31 - 1  # the first head of a relation that is not there

# the structs of arguments.h, whose sizes are multiples of 64 where they hold tensor maps
_MAPS = f"{2 * _MOST * 128}s {_MOST}i 52x"
_RELATIONS = f"{_MAPS} {_MAPS} {_MOST}i {_MOST}i 40x"
_SEEN = "Q 2i"
_FORWARD = struct.Struct(f"{_RELATIONS} {_SEEN} 2Q Q 2i f 12x")
_BACKWARD = struct.Struct(f"{_RELATIONS} {_SEEN} 6Q Q 3i 2f 36x")
_FINISH = struct.Struct("4Q 2i f 4x")


def unsupported(relations: Sequence[Relation], visible: Visibility) -> str | None:
    """Why these kernels do not take the call; None if they do."""
    like = relations[0].q_s
    if like.device.type != "cuda" or _capability(like.device) != (9, 0):
        return "another device than a Hopper GPU"
    if like.dtype != torch.bfloat16:
        return str(like.dtype).removeprefix("torch.")
    if like.shape[-1] not in HEAD_DIMS:
        return f"head_dim {like.shape[-1]}"
    if not visible.causal:
        return "rows that see the tokens after them"
    if visible.valid is not None:
        return "invalid tokens"
    if nvrtc() is None:
        return "no NVRTC library (it comes with torch: nvidia-cuda-nvrtc)"
    return None


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


class Kernels(NamedTuple):
    """An :class:`linearard.ops.relation_kl.autograd.Implementation`.

    Attributes:
        deterministic: gradients repeat to the bit: their parts are added in order. Otherwise as they
            come, or in order where that was found to cost nothing.
    """

    deterministic: bool

    def forward(
        self, relations: Sequence[Relation], visible: Visibility, scale: float
    ) -> tuple[list[Tensor], list[Tensor]]:
        """KL of each relation [B, H, N] and the statistics [4, sum of B * H, N], float32."""
        like = relations[0].q_s
        tokens, head_dim = like.shape[2:]
        heads = [r.q_s.shape[0] * r.q_s.shape[1] for r in relations]
        kl = torch.empty(sum(heads), tokens, dtype=torch.float32, device=like.device)
        stats = kl.new_empty(4, *kl.shape)
        read, seen = _readable(relations), _Seen.of(visible, tokens, like.device)
        with _on(like.device):
            given = _FORWARD.pack(
                *_described(read), *seen.packed, kl.data_ptr(), stats.data_ptr(), kl.numel(),
                len(kl), heads_together(len(kl), tokens, head_dim * 4), scale * _LOG2_E,
            )  # fmt: skip
            driver.launch(
                "forward.cu", f"forward_{head_dim}", len(kl) * row_blocks("forward", tokens),
                _THREADS["forward"], shared_bytes("forward", head_dim), given, like.device.index,
            )  # fmt: skip
        rows = kl.split(heads)
        return [x.view(r.q_s.shape[:3]) for x, r in zip(rows, relations, strict=True)], [stats]

    def backward(
        self,
        grads: Sequence[Tensor | None],
        stats: Sequence[Tensor],
        relations: Sequence[Relation],
        visible: Visibility,
        scale: float,
        needs: Sequence[tuple[bool, bool]],
    ) -> list[tuple[Tensor | None, Tensor | None]]:
        """Gradients of the students, bfloat16; one of two asked for costs as much as both."""
        asked = [i for i, g in enumerate(grads) if g is not None and any(needs[i])]
        result = [(None, None)] * len(relations)
        if not asked:
            return result
        heads = [r.q_s.shape[0] * r.q_s.shape[1] for r in relations]
        (stats,) = stats
        if len(asked) < len(relations):
            parts = stats.split(heads, 1)
            stats = torch.cat([parts[i] for i in asked], 1)
        rows = [grads[i].reshape(heads[i], -1) for i in asked]
        grad = torch.cat(rows) if len(rows) > 1 else rows[0].contiguous()
        given = [relations[i] for i in asked]
        queries, keys = self._gradients(given, stats, grad, visible, scale)
        if queries is not None:
            (relation,), (needed,) = given, needs
            gradients = (queries.view_as(relation.q_s), keys.view_as(relation.k_s))
            return [tuple(g if n else None for g, n in zip(gradients, needed, strict=True))]
        parts = keys.split([heads[i] for i in asked])
        for i, part in zip(asked, parts, strict=True):
            result[i] = (part.view(relations[i].q_s.shape), None)
        return result

    def _gradients(
        self,
        relations: list[Relation],
        stats: Tensor,
        grad: Tensor,
        visible: Visibility,
        scale: float,
    ) -> tuple[Tensor | None, Tensor]:
        """Of queries and keys [sum of B * H, N, D], or of self-relations None and both at once.

        As many heads at a time as the workspace holds. Query heads of a group have sums of their
        own, which ``finish`` adds.
        """
        like, k_s = relations[0].q_s, relations[0].k_s
        tokens, head_dim = like.shape[2:]
        apart = k_s is not None
        share = like.shape[1] // k_s.shape[1] if apart else 1
        plain = not (apart or visible.banded)
        pays = order_pays(len(grad), tokens, head_dim) and not visible.banded
        ordered = self.deterministic or pays
        kind = {"dtype": like.dtype, "device": like.device}
        queries = torch.empty(*grad.shape, head_dim, **kind) if apart else None
        keys = torch.empty(len(grad) // share, tokens, head_dim, **kind)
        blocks, chains = row_blocks("backward", tokens), chains_of(head_dim) if ordered else 1
        copies = chains + (ordered and not apart)
        padded = blocks * _ROWS["backward"]
        size = padded * head_dim  # of a head's sums
        most = min(len(grad), max(1, _WORKSPACE_BYTES // (4 * copies * size * share)) * share)
        # a head's parts lie together if there are two chains, else all heads' first parts
        sums = grad.new_empty(copies, most, size)
        own = sums[1].data_ptr() if (chains, copies) == (1, 2) else 0
        a_head, next_part = (size, most * size) if own else (copies * size, size)
        kept = 2 * chains * most * blocks * ordered
        turns = torch.empty(kept, dtype=torch.int32, device=grad.device)
        name = f"backward_{'plain_' * plain}{'ordered_' * ordered}{head_dim}"
        read, seen = _readable(relations), _Seen.of(visible, tokens, like.device)
        described, behind = (*_described(read), *seen.packed), 4 * tokens
        with _on(like.device):
            for first in range(0, len(grad), most):
                count = min(most, len(grad) - first)
                (turns if ordered else sums[0, :count]).zero_()
                given = _BACKWARD.pack(
                    *described, stats.data_ptr() + first * behind, grad.data_ptr() + first * behind,
                    sums.data_ptr(), own, queries[first].data_ptr() if apart else 0,
                    turns.data_ptr(), grad.numel(), count,
                    heads_together(count, tokens, head_dim * 8), first, scale * _LOG2_E, scale,
                )  # fmt: skip
                driver.launch(
                    "backward.cu", name, count * blocks, _THREADS["backward"],
                    shared_bytes("backward", head_dim), given, like.device.index,
                )  # fmt: skip
                given = _FINISH.pack(
                    sums.data_ptr(), keys[first // share].data_ptr(), share * a_head,
                    next_part, copies * share, tokens, scale,
                )  # fmt: skip
                driver.launch(
                    "backward.cu", f"finish_{head_dim}", count // share * size // _FINISHED, 128,
                    0, given, like.device.index,
                )  # fmt: skip
        return queries, keys


class _Seen(NamedTuple):
    """``Seen`` of arguments.h; keeps ``starts`` while it is needed."""

    starts: Tensor | None
    window: int
    tokens: int

    @staticmethod
    def of(visible: Visibility, tokens: int, device: torch.device) -> _Seen:
        """Spans only where documents ask for them: a window is counted on the device."""
        packed = visible.cu_seqlens is not None
        starts = visible.spans(tokens, device)[0] if packed else None
        return _Seen(starts, visible.window or tokens, tokens)

    @property
    def packed(self) -> tuple[int, int, int]:
        return 0 if self.starts is None else self.starts.data_ptr(), self.window, self.tokens


def shared_bytes(kind: str, head_dim: int) -> int:
    """Shared memory of a block; ForwardShape and BackwardShape say of what."""
    rows = _ROWS[kind]
    if kind == "forward":
        return (2 * rows + 8 * _TOKENS) * head_dim * 2 + _SLACK
    slots = 3 if head_dim == 128 else 6
    return (2 + slots) * rows * head_dim * 2 + 2 * rows * rows * 2 + _SLACK


def _readable(relations: Sequence[Relation]) -> list[Relation]:
    """Those relations, operands copied where the copy engine could not read them."""
    return [
        Relation(*(x if x is None or driver.readable(x) else x.contiguous() for x in r))
        for r in relations
    ]


def _described(read: list[Relation]) -> tuple:
    """``Relations`` of arguments.h; the first stands in for those that are not there."""
    absent = _MOST - len(read)

    def filled(values: list) -> list:
        return values + values[:1] * absent

    def maps(teachers: list[Tensor], students: list[Tensor]) -> tuple:
        made = (filled([driver.tensor_map(x) for x in side]) for side in (teachers, students))
        share = [r.q_s.shape[1] // x.shape[1] for r, x in zip(read, students, strict=True)]
        return b"".join(x for side in made for x in side), *filled(share)

    q_s = [r.q_s for r in read]
    queries = keys = maps([r.q_t for r in read], q_s)
    if read[0].k_s is not None:
        keys = maps([r.k_t for r in read], [r.k_s for r in read])
    first = list(accumulate((x.shape[0] * x.shape[1] for x in q_s[:-1]), initial=0))
    heads = filled([x.shape[1] for x in q_s])
    return *queries, *keys, *first, *[_ABSENT] * absent, *heads


def row_blocks(kind: str, tokens: int) -> int:
    """Blocks of rows that each head has in the forward or the backward."""
    return -(-tokens // _ROWS[kind])


def chains_of(head_dim: int) -> int:
    """Into how many sums the blocks of a head add by turns where they add in order."""
    return 2 if head_dim == 64 else 1


def order_pays(heads: int, tokens: int, head_dim: int) -> bool:
    """Whether whole causal rows add in order, asked for or not."""
    heads_from, tokens_from = _ORDER_PAYS
    return head_dim == 128 and heads >= heads_from and tokens >= tokens_from


def heads_together(heads: int, tokens: int, bytes_a_token: int) -> int:
    """How many heads share the cache while their rows are worked on.

    As many as fit, or up to a quarter fewer or more, so that the last set is as full as the others: of few
    heads in it the longest rows would end alone.
    """
    fit = max(1, _CACHE_BYTES // (tokens * bytes_a_token))
    if heads <= fit:
        return heads
    sizes = range(-(-3 * fit // 4), 5 * fit // 4 + 1)
    return min(sizes, key=lambda size: (-heads % size / size, abs(size - fit)))


def _on(device: torch.device) -> AbstractContextManager:
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return nullcontext()
    return torch.cuda.device(device)
