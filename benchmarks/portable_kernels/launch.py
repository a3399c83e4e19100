"""Launch a kernel at little cost to the host.

Triton looks at every argument of a launch to find the variant that was compiled for its kind, which
takes longer than small kernels run. What it looks at is gathered here in one pass; a variant that
was launched before is then called directly.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from benchmarks.portable_kernels.tiles import Tile
from linearard.ops.relation_kl.triton.tiles import interpreted

_variants: dict[tuple, Any] = {}


def launch(
    kernel: triton.runtime.JITFunction,
    programs: int,
    arguments: tuple,
    constants: dict[str, object],
    tile: Tile,
) -> None:
    """Launch ``programs`` programs of ``kernel`` on the current stream of the current device.

    Args:
        kernel: of parameters that are no constants first, and then constants.
        programs: below 2^31.
        arguments: tensors, numbers, None, and tuples of these.
        constants: the constants by name, in their order.
        tile: warps, stages and registers.
    """
    if interpreted():
        kernel[(programs,)](*arguments, **constants)
        return
    kinds: list[object] = []
    values = [_value(argument, kinds) for argument in arguments]
    device = torch.cuda.current_device()
    key = (kernel, device, tile, *constants.values(), *kinds)
    variant = _variants.get(key)
    if variant is None:
        _variants[key] = kernel[(programs,)](*arguments, **constants, **options(tile))
    else:
        variant[(programs, 1, 1)](*values, *constants.values())


def options(tile: Tile) -> dict[str, object]:
    """What the compiler is told beside the constants.

    Multiply-adds are fused, which Triton 3.10 no longer does unasked.
    """
    return {
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "maxnreg": tile.registers,
        "enable_fp_fusion": True,
    }


def _value(argument, kinds: list) -> object:
    """What the variant is called with; adds to ``kinds`` all that a variant depends on."""
    kind = type(argument)
    if kind is int:
        kinds.append((argument == 1) + 2 * (argument % 16 == 0) + 4 * (argument >= 2**31))
        return argument
    if kind is tuple:
        kinds.append(len(argument))
        return tuple([_value(x, kinds) for x in argument])
    if isinstance(argument, Tensor):
        at = argument.data_ptr()
        kinds += (argument.dtype, at % 16 == 0)
        return at
    kinds.append(kind)
    return argument
