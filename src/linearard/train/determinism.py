"""Same seed, same bits: PyTorch's deterministic algorithms for as long as a run trains."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from linearard.errors import DeviceError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_NO_OTHER = "does not have a deterministic implementation"


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool, device: torch.device) -> Iterator[None]:
    """Have PyTorch use no kernel whose result depends on the order in which threads come.

    Attention runs by flash kernels then, whose gradients are added in order, not by cuDNN's
    (`capture.sdpa`). The relation KL is deterministic in any case.

    Args:
        wanted: false changes nothing.
        device: where the model runs.

    Raises:
        DeviceError: cuBLAS has begun in another mode in this process, or the model needs an operation that
            has no deterministic form.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        one = torch.ones(1, 1, device=device)
        one @ one  # cuBLAS looks at the environment once a process, when it is first asked
        yield
    except RuntimeError as error:
        first = str(error).partition(". ")[0]
        if _WORKSPACE in str(error):
            raise DeviceError(
                expected=f"{_WORKSPACE} to be set before the first matrix product of the process, for "
                "deterministic",
                got="a process that has computed without it",
                fix=f"Start it anew with {_WORKSPACE}=:4096:8 in its environment.",
            ) from error
        if _NO_OTHER in str(error):
            raise DeviceError(
                expected="operations that PyTorch has in a deterministic form, for deterministic",
                got=" ".join(first.split()),
                fix="Set deterministic to false, or use another model.",
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
