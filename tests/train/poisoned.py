"""A loss that becomes NaN in one call of one process.

For torchrun: poisoned.py CALL PROCESS GOOD_RECIPE BAD_RECIPE trains both; only the second is spoilt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any


class Poison:
    """Stands in for `RestorationModule.forward` and spoils one call of it.

    Args:
        original: the real `forward`.
        call: which call is spoilt, from 1.
        spoil: loss to bad loss.

    Attributes:
        input_ids: of the spoilt call.
    """

    def __init__(
        self,
        original: Callable[..., dict[str, Any]],
        call: int,
        spoil: Callable[[Any], Any] = lambda loss: loss * float("nan"),
    ) -> None:
        self._original, self._call, self._spoil, self._count = original, call, spoil, 0
        self.input_ids: Any = None

    def __get__(self, module: Any, owner: type) -> Callable[..., dict[str, Any]]:
        def forward(input_ids: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
            outputs = self._original(module, input_ids, *args, **kwargs)
            self._count += 1
            if self._count == self._call:
                self.input_ids = input_ids.clone()
                outputs["loss"] = self._spoil(outputs["loss"])
            return outputs

        return forward


if __name__ == "__main__":
    from linearard.cli.main import main
    from linearard.distill import RestorationModule

    call, process, good, bad = sys.argv[1:]
    if code := main(["train", good, "--quiet"]):
        sys.exit(code)
    if os.environ["RANK"] == process:
        RestorationModule.forward = Poison(RestorationModule.forward, int(call))
    sys.exit(main(["train", bad, "--quiet"]))
