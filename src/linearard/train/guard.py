"""Watching a stage by held-out windows: back to the last good state and a lower rate where it diverges."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from linearard.model import Adapter
from linearard.model.shares import gathered, joined, local, share_like
from linearard.model.view_names import STRETCHED
from linearard.recipe.held_out import HeldOutConfig
from linearard.train.held_out import HeldOut, Look

_LOGGER = logging.getLogger(__name__)
#: KL above this many times the least so far, and by this many nats, has diverged.
_TIMES, _NATS = 1.5, 0.01
#: But not below this share of the KL that the stretched model had before any stage.
_OF_UNTRAINED = 0.5
#: So has a long window whose loss is this many nats above the least so far.
_LONG_NATS = 0.3
_MOST_RETURNS = 4
_LOWER = 0.5
_GOOD_FILE = "last_good.safetensors"


class Guard(TrainerCallback):
    """Looks at the held-out windows every so many steps, and undoes what made the model worse.

    Args:
        adapter: what is trained.
        held_out: measures the model.
        config: how often.
    """

    def __init__(self, adapter: Adapter, held_out: HeldOut, config: HeldOutConfig) -> None:
        self._adapter, self._held_out, self._config = adapter, held_out, config
        self.looks: list[dict[str, float]] = []
        self.returns: list[dict[str, Any]] = []
        self._least_kl = self._least_long = math.inf
        self._good_step, self._good = 0, self._copy()
        self._stopped, self.untrained = False, Look(0.0)

    def begin(self) -> None:
        """Look before the first step."""
        self.begin_with(self._held_out.look(), self._held_out.look(STRETCHED))

    def begin_with(self, look: Look, untrained: Look) -> None:
        """Begin with looks taken before: at the model, and at the stretched one before any stage."""
        self.untrained = untrained
        self._accept(0, look)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, where it is time."""
        step = state.global_step
        due = self._config.every and step % self._config.every == 0
        if not due or step >= state.max_steps:
            return
        look = self._held_out.look()
        if not self._diverged(look):
            self._accept(step, look)
            return
        shown = ", ".join(f"{name} {value:.4g}" for name, value in look.values.items())
        if not self.go_back(step, f"held-out {shown}", **kwargs):
            self._stopped = control.should_training_stop = control.should_save = True

    def finish(self, step: int) -> Look:
        """The last look; a model that has diverged since the one before goes back to it."""
        look = self._held_out.look()
        if self._diverged(look):
            self._note(step, "the last steps made the model worse", 1.0)
            self._restore()
            look = self._held_out.look()
        self._accept(step, look)
        return look

    def go_back(
        self, step: int, reason: str, *, optimizer: Any, lr_scheduler: Any, **_: Any
    ) -> bool:
        """Return to the last good weights at half the learning rate.

        Args:
            step: the step that was left.
            reason: why, in words.
            optimizer, lr_scheduler: whose state is cleared, and whose rate is lowered.

        Returns:
            Whether training may go on: false once it has returned too often.
        """
        self._restore()
        if len(self.returns) >= _MOST_RETURNS:
            self._note(step, f"{reason}; stopped after {_MOST_RETURNS} returns", 0.0)
            return False
        self._note(step, reason, _LOWER)
        getattr(optimizer, "optimizer", optimizer).state.clear()
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        schedule.base_lrs = [_LOWER * rate for rate in schedule.base_lrs]
        for group in optimizer.param_groups:
            group["lr"] = _LOWER * group["lr"]
            if "initial_lr" in group:
                group["initial_lr"] = _LOWER * group["initial_lr"]
        return True

    def state(self) -> dict[str, Any]:
        """JSON-able; with the weights that `save` writes it makes a resumed stage the same."""
        return {
            "looks": self.looks,
            "returns": self.returns,
            "least": [self._least_kl, self._least_long],
            "good_step": self._good_step,
            "untrained": self.untrained.values,
            "stopped": self._stopped,
        }

    def gathered(self, step: int) -> dict[str, Tensor]:
        """The last good weights, whole, for `save_good`; nothing where a checkpoint of `step` has them.

        Every process must ask at once where the weights are divided among them.
        """
        if self._good_step == step:
            return {}
        parameters = self._adapter.parameters()
        good = (
            (str(i), joined(*pair))
            for i, pair in enumerate(zip(self._good, parameters, strict=True))
        )
        return gathered(good)

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, whose weights the adapter has."""
        from safetensors.torch import load_file

        self.looks, self.returns = list(state["looks"]), list(state["returns"])
        self._least_kl, self._least_long = state["least"]
        self._good_step, self.untrained = state["good_step"], Look(**state["untrained"])
        path = folder / _GOOD_FILE
        self._good = self._copy()
        if path.is_file():
            stored = load_file(path)
            self._good = [
                share_like(stored[str(index)], parameter).cpu()
                for index, parameter in enumerate(self._adapter.parameters())
            ]

    def _diverged(self, look: Look) -> bool:
        if not look.finite:
            return True
        if look.kl > max(_TIMES * self._least_kl + _NATS, _OF_UNTRAINED * self.untrained.kl):
            return True
        return look.long is not None and look.long > self._least_long + _LONG_NATS

    def _accept(self, step: int, look: Look) -> None:
        self.looks.append({"step": step, **look.values})
        if look.finite:
            self._least_kl = min(self._least_kl, look.kl)
            if look.long is not None:
                self._least_long = min(self._least_long, look.long)
        self._good_step, self._good = step, self._copy()

    def _note(self, step: int, reason: str, factor: float) -> None:
        self.returns.append({"step": step, "to_step": self._good_step, "reason": reason})
        rate = f" at {factor:g} of the learning rate" if 0 < factor < 1 else ""
        _LOGGER.warning(
            "Step %d: %s. Back to the weights of step %d%s.", step, reason, self._good_step, rate
        )

    @torch.no_grad()
    def _restore(self) -> None:
        for parameter, good in zip(self._adapter.parameters(), self._good, strict=True):
            local(parameter).copy_(good)

    def _copy(self) -> list[Tensor]:
        return [local(p.detach()).to("cpu", copy=True) for p in self._adapter.parameters()]


def save_good(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write the last good weights, as `Guard.gathered` gave them, into a checkpoint that holds others."""
    from safetensors.torch import save_file

    if weights:
        save_file(weights, folder / _GOOD_FILE)
