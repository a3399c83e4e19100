"""Forward and backward from the host: buffers, arguments, launches."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
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
_TOKENS = 64  # of a forward's tile; rows that lie together among the sums
_THREADS = {"forward": 512, "backward": 384}
_ROWS = {"forward": 192, "backward": 128}  # of a block
_SLACK = 1024 + 256  # bytes of shared memory: alignment and barriers
_CACHE_BYTES = 32 << 20  # of the 50 MB second-level cache
_WORKSPACE_BYTES = 1 << 30  # of float32 sums at a time
_MOST = 3  # relations of a launch
_ABSENT = 2**31 - 1  # the first head of a relation that is not there

# the structs of arguments.h, whose sizes are multiples of 64 where they hold tensor maps
_RELATIONS = f"{2 * _MOST * 128}s {_MOST}i {_MOST}i 40x"
_SEEN = "Q 2i"
_FORWARD = struct.Struct(f"{_RELATIONS} {_SEEN} 2Q Q 2i f 12x")
_BACKWARD = struct.Struct(f"{_RELATIONS} {_SEEN} 5Q Q 3i f 48x")
_FINISH = struct.Struct("3Q i f")


def unsupported(relations: Sequence[Relation], visible: Visibility) -> str | None:
    """Why these kernels do not take the call; None if they do."""
    like = relations[0].q_s
    if like.device.type != "cuda" or torch.cuda.get_device_capability(like.device) != (9, 0):
        return "another device than a Hopper GPU"
    if like.dtype != torch.bfloat16:
        return str(like.dtype).removeprefix("torch.")
    if like.shape[-1] not in HEAD_DIMS:
        return f"head_dim {like.shape[-1]}"
    if relations[0].k_s is not None:
        return "keys that are not the queries"
    if not visible.causal:
        return "rows that see the tokens after them"
    if visible.valid is not None:
        return "invalid tokens"
    if nvrtc() is None:
        return "no NVRTC library (it comes with torch: nvidia-cuda-nvrtc)"
    return None


class Kernels(NamedTuple):
    """An :class:`linearard.ops.relation_kl.autograd.Implementation`.

    Attributes:
        deterministic: gradients repeat to the bit: their parts are added in order.
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
                len(kl), _together(len(kl), tokens, head_dim * 4), scale * _LOG2_E,
            )  # fmt: skip
            driver.launch(
                "forward.cu", f"forward_{head_dim}", len(kl) * _blocks("forward", tokens),
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
        """Gradients of the students, bfloat16."""
        asked = [i for i, g in enumerate(grads) if g is not None and needs[i][0]]
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
        gradients = self._gradients([relations[i] for i in asked], stats, grad, visible, scale)
        parts = gradients.split([heads[i] for i in asked])
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
    ) -> Tensor:
        """[sum of B * H, N, D]; as many heads at a time as the workspace holds."""
        like = relations[0].q_s
        tokens, head_dim = like.shape[2:]
        blocks, copies = _blocks("backward", tokens), 1 + self.deterministic
        out = torch.empty(*grad.shape, head_dim, dtype=like.dtype, device=like.device)
        padded = blocks * _ROWS["backward"]
        each = copies * padded * head_dim * 4
        most = min(len(out), max(1, _WORKSPACE_BYTES // each))
        sums = grad.new_empty(copies, most, padded, head_dim)
        own = sums[1].data_ptr() if self.deterministic else 0
        turns = torch.empty(
            2 * most * blocks * self.deterministic, dtype=torch.int32, device=grad.device
        )
        name = f"backward_{'ordered_' * self.deterministic}{head_dim}"
        read, seen = _readable(relations), _Seen.of(visible, tokens, like.device)
        described, behind = (*_described(read), *seen.packed), 4 * tokens
        with _on(like.device):
            for first in range(0, len(out), most):
                count = min(most, len(out) - first)
                (turns if self.deterministic else sums[0, :count]).zero_()
                given = _BACKWARD.pack(
                    *described, stats.data_ptr() + first * behind, grad.data_ptr() + first * behind,
                    sums.data_ptr(), own, turns.data_ptr(), grad.numel(), count,
                    _together(count, tokens, head_dim * 8), first, scale * _LOG2_E,
                )  # fmt: skip
                driver.launch(
                    "backward.cu", name, count * blocks, _THREADS["backward"],
                    shared_bytes("backward", head_dim), given, like.device.index,
                )  # fmt: skip
                given = _FINISH.pack(
                    sums.data_ptr(), own, out[first].data_ptr(), tokens, float(scale)
                )
                driver.launch(
                    "backward.cu", f"finish_{head_dim}", count * padded // _TOKENS, 128,
                    0, given, like.device.index,
                )  # fmt: skip
        return out


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


def _readable(relations: Sequence[Relation]) -> list[list[Tensor]]:
    """(teacher, student) of each, copied where the copy engine could not read them."""
    return [
        [x if driver.readable(x) else x.contiguous() for x in (r.q_t, r.q_s)] for r in relations
    ]


def _described(read: list[list[Tensor]]) -> tuple:
    """``Relations`` of arguments.h; the first stands in for those that are not there."""
    absent = _MOST - len(read)
    maps = []
    for side in (0, 1):
        made = [driver.tensor_map(pair[side]) for pair in read]
        maps += made + made[:1] * absent
    heads = [s.shape[1] for _, s in read]
    first = list(accumulate((s.shape[0] * s.shape[1] for _, s in read[:-1]), initial=0))
    return b"".join(maps), *first, *[_ABSENT] * absent, *heads, *heads[:1] * absent


def _blocks(kind: str, tokens: int) -> int:
    return -(-tokens // _ROWS[kind])


def _together(heads: int, tokens: int, bytes_a_token: int) -> int:
    """How many heads share the cache while their rows are worked on."""
    return min(heads, max(1, _CACHE_BYTES // (tokens * bytes_a_token)))


def _on(device: torch.device) -> AbstractContextManager:
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return nullcontext()
    return torch.cuda.device(device)
