"""What a user sees of a stage while it trains: its terms on the progress bar, and its speed."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers import ProgressCallback

from linearard.counting import step_flops
from linearard.data import progress_bar
from linearard.distill import ObjectiveConfig
from linearard.distill.output_terms import OUTPUT_TERMS
from linearard.errors import UserError
from linearard.model import RestorableModel

#: Terms of the loss beside the relations.
_SHOWN = {"hidden", *(term.name for term in OUTPUT_TERMS)}
_SIDE = 8192  # of the matrices whose product is the device's peak


class Speed:
    """Tokens, sequences and operations since the last look.

    Args:
        restorable: the model.
        objectives: by part.
        dtype: of the matrix products; None: utilisation is not measured.
        sharing: how many processes share a batch.
    """

    def __init__(
        self,
        restorable: RestorableModel,
        objectives: Mapping[str, ObjectiveConfig],
        dtype: torch.dtype | None,
        sharing: int = 1,
    ) -> None:
        self._sharing = sharing
        self._restorable, self._objectives, self._dtype = restorable, objectives, dtype
        self._count_once = functools.cache(self._count)
        self._peak = 0.0
        self.start()

    def start(self) -> None:
        """Begin to count, from nothing."""
        device = self._restorable.device
        if self._dtype is not None and device.type == "cuda" and not self._peak:
            self._peak = peak_flops(device, self._dtype)
        self._tokens = self._sequences = self._flops = 0.0
        self._since = time.perf_counter()

    def add(self, inputs: Mapping[str, Any]) -> None:
        """Count a batch, `input_ids` `[batch, tokens]` and, if it has one, its `part`."""
        batch, tokens = inputs["input_ids"].shape
        self._tokens += batch * tokens / self._sharing
        self._sequences += batch / self._sharing
        if self._peak:
            self._flops += self.flops_of(inputs) / self._sharing

    def flops_of(self, inputs: Mapping[str, Any]) -> int:
        """Operations that a batch, as `add` takes it, needs (`counting.step_flops`); 0: not known."""
        return self._count_once(inputs.get("part", ""), *inputs["input_ids"].shape)

    def read(self, processes: int) -> dict[str, float]:
        """Figures since the last look, of all processes together; then begin again.

        `tokens_per_second`, `seconds_per_sequence`, and on a GPU `mfu`: the operations that the step
        needs (`counting.step_flops`) over those of a large matrix product in the same time.
        """
        seconds = time.perf_counter() - self._since
        figures = {"tokens_per_second": self._tokens * processes / seconds}
        if self._sequences:
            figures["seconds_per_sequence"] = seconds / (self._sequences * processes)
        if self._flops:
            figures["mfu"] = self._flops / seconds / self._peak
        self.start()
        return figures

    def _count(self, part: str, batch: int, tokens: int) -> int:
        restorable = self._restorable
        try:
            return step_flops(
                restorable.config,
                self._objectives[part],
                tokens,
                batch,
                adapter=restorable.adapter.config,
                native_window=restorable.rope.native_window,
            )
        except UserError:  # an architecture whose products are not known
            return 0


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a product of random 8192 x 8192 matrices, measured once a process."""
    own = torch.Generator(device)  # the run's random numbers stay what they are
    x, y = (torch.randn(_SIDE, _SIDE, generator=own, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(x)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    for _ in range(3):
        torch.mm(x, y, out=out)
    rounds = 10
    events[0].record()
    for _ in range(rounds):
        torch.mm(x, y, out=out)
    events[1].record()
    events[1].synchronize()
    return rounds * 2 * _SIDE**3 / (events[0].elapsed_time(events[1]) / 1000)


class LiveProgress(ProgressCallback):
    """A progress bar that shows the loss, its terms and the speed instead of printing dictionaries."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the bar, or in a log its lines, under the stage's name."""
        if state.is_world_process_zero:
            self.training_bar = progress_bar(
                total=state.max_steps, desc=self._stage, unit="step", shown=True
            )
        self.current_step = 0

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Refresh the figures behind the bar."""
        if self.training_bar is None or not logs or "loss" not in logs:
            return
        shown = {"loss": f"{logs['loss']:.4f}"}
        for name, value in logs.items():
            part, _, term = name.rpartition("/")
            if term.startswith("relation_") or term in _SHOWN:
                term = term.removeprefix("relation_")
                shown[f"{part}/{term}" if part else term] = f"{value:.3f}"
        shown["tok/s"] = f"{logs.get('tokens_per_second', 0):,.0f}"
        self.training_bar.set_postfix(shown)
