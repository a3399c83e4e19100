"""Windows that several processes share: each has some of the tokens, and attends with some of the heads.

All but attention looks at one token at a time. Before it, an all-to-all gives every process all tokens of
some heads; after it, another one gives it all heads of its own tokens back (DeepSpeed Ulysses, arXiv
2309.14509). So attention, and whatever observes its operands, sees the whole window, and no kernel has to
know.

The heads of a group of grouped-query attention stay together. Where there are fewer key heads than processes,
or a number that these do not divide, keys and values are repeated until they do: each repeat is as often, so
that means over heads stay what they are.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Names by which `accelerate` deals out batches: those of one "cp" read the same.
_READERS, _SHARING = "dp_replicate", "cp"


@dataclass(frozen=True)
class SharedSequence:
    """The processes that share a window, this one among them.

    Attributes:
        mesh: all processes, `[readers, sharing]`.
        rank: of this process among those that share.
        size: how many share.
    """

    mesh: Any
    rank: int
    size: int

    @classmethod
    def among(cls, size: int, device: torch.device) -> SharedSequence:
        """Processes in their order, `size` by `size`; all of them must ask at once.

        Args:
            size: divides the number of processes.
            device: of this one.
        """
        mesh = _mesh(size, device.type)
        return cls(mesh, mesh.get_local_rank(_SHARING), size)

    @property
    def group(self) -> Any:
        """For collectives among those that share."""
        return self.mesh.get_group(_SHARING)

    def part(self, tokens: int) -> slice:
        """The tokens of a window that are this process's, of a number that `size` divides."""
        return self.parts(tokens)[self.rank]

    def parts(self, tokens: int) -> list[slice]:
        """Those of every process."""
        each = tokens // self.size
        return [slice(rank * each, (rank + 1) * each) for rank in range(self.size)]

    def repeats(self, heads: int) -> int:
        """How often each of so many key heads is there, so that `size` divides them."""
        return math.lcm(heads, self.size) // heads

    def to_heads(self, x: Tensor) -> Tensor:
        """All heads of some tokens to some heads of all: `[batch, heads, tokens, head_dim]`."""
        again = self.repeats(x.shape[1])
        x = x.repeat_interleave(again, dim=1) if again > 1 else x
        batch, heads, tokens, width = x.shape
        x = x.view(batch, self.size, heads // self.size, tokens, width).transpose(0, 1)
        x = _Exchange.apply(
            x, self.group
        )  # [processes, batch, heads / processes, tokens, head_dim]
        return x.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def to_tokens(self, x: Tensor) -> Tensor:
        """Back, of attention's output `[batch, tokens, heads, head_dim]`: all heads of some tokens."""
        batch, tokens, heads, width = x.shape
        x = x.view(batch, self.size, tokens // self.size, heads, width).transpose(0, 1)
        x = _Exchange.apply(x, self.group)
        return x.permute(1, 2, 0, 3, 4).flatten(2, 3)


@functools.cache
def _mesh(size: int, device: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    processes = torch.distributed.get_world_size()
    return init_device_mesh(device, (processes // size, size), mesh_dim_names=(_READERS, _SHARING))


class _Exchange(torch.autograd.Function):
    """Element i of the first dimension goes to process i, whose own comes in its place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _exchanged(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _exchanged(gradient, ctx.group), None


def _exchanged(x: Tensor, group: Any) -> Tensor:
    x = x.contiguous()
    found = torch.empty_like(x)
    torch.distributed.all_to_all_single(found, x, group=group)
    return found
