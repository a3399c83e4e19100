"""What all launches share."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor


def on_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launch where the data is, whichever GPU is current."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return contextlib.nullcontext()


def warps_for(elements: int) -> int:
    """Warps for a block of this many elements: 16 elements a thread, 1 to 16 warps."""
    return min(16, max(1, triton.next_power_of_2(elements) // 512))
