"""A stage that is watched: its learning rate tried out before, its divergence undone, its share chosen."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from linearard.model import written
from linearard.storage import write_json
from linearard.train.guard import Guard
from linearard.train.held_out import HeldOut, HeldOutText, Look
from linearard.train.random_state import RandomState
from linearard.train.rate_trials import RateTrials, choose_rate
from linearard.train.trial_steps import TrialSteps
from linearard.train.weight_interpolation import InitialWeights

if TYPE_CHECKING:
    from linearard.train.trainer import RestorationTrainer

_LOGGER = logging.getLogger(__name__)
_DECISIONS_FILE = "held_out.json"
#: Bounds of what `held_out.reference_kl` changes: of the rate, and of the logit KL's weight.
_LEAST_DISTANCE, _MOST_EMPHASIS = 1 / 16, 4.0


class WatchedStage:
    """What held-out windows decide in one stage.

    Every decision is written into the stage's folder, so that a resumed stage keeps to it.

    Args:
        trainer: of the stage, before it trains.
        text: the held-out windows.
    """

    def __init__(self, trainer: RestorationTrainer, text: HeldOutText) -> None:
        args, restorable = trainer.args, trainer.restorable
        self._trainer, self._config = trainer, args.held_out
        self._folder = Path(args.output_dir)
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        self._held_out = HeldOut(restorable, text, dtype)
        self._beginning = InitialWeights(restorable.adapter)
        self.guard = Guard(restorable.adapter, self._held_out, self._config)
        trainer.add_callback(self.guard)
        self._steps = TrialSteps(trainer)

    def prepare(self) -> None:
        """Before the first step: look, and find the learning rate, unless an earlier start has."""
        args, decided = self._trainer.args, _read_decisions(self._folder)
        if "learning_rate" not in decided:
            random_state = RandomState()
            self.guard.begin()
            decided: dict[str, Any] = {"begun": self.guard.looks[0]}
            decided["untrained"] = self.guard.untrained.values
            self._suit_distance(self.guard.untrained)
            decided["learning_rate"] = args.learning_rate
            if self._config.rate_trials:
                decided |= self._find_rate(Look(**_without_step(self.guard.looks[0])))
            random_state.restore()
            if args.should_save:
                _write_decisions(self._folder, decided)
        else:
            begun = Look(**_without_step(decided["begun"]))
            self.guard.begin_with(begun, Look(**decided["untrained"]))
            self._suit_distance(self.guard.untrained)
        self._trainer.set_learning_rate(decided["learning_rate"])

    def finish(self, step: int) -> None:
        """After the last step: undo what diverged, and leave the share of the change that is best."""
        decided = _read_decisions(self._folder)
        if "share" in decided:
            self._beginning.blend(decided["share"])
            return
        look = self.guard.finish(step)
        share, found = self._trainer.args.weight_interpolation, {}
        if self._config.shares:
            share, found = self._beginning.best_share(
                self._config.shares, self._held_out.look, self.guard.untrained
            )
        else:
            self._beginning.blend(share)
        if self._trainer.args.should_save:
            ended = {
                "share": share,
                "shares": {f"{tried:g}": look.values for tried, look in found.items()},
                "ended": look.values,
                "looks": self.guard.looks,
                "returns": self.guard.returns,
            }
            _write_decisions(self._folder, ended)

    def _suit_distance(self, untrained: Look) -> None:
        """Start from a lower rate, and hold to the original more, where stretching changed little.

        How far weights have to go is about the square root of the KL. Optimizers whose steps have one
        length, whatever the gradient is, would go too far; and beside the loss of long windows the gradient
        of a KL vanishes as that root does.
        """
        reference = self._config.reference_kl
        if reference is None or not untrained.finite:
            return
        distance = min(1.0, max(math.sqrt(max(untrained.kl, 0.0) / reference), _LEAST_DISTANCE))
        self._trainer.set_learning_rate(distance * self._trainer.args.learning_rate)
        self._trainer.model.emphasise_logits(min(1 / distance, _MOST_EMPHASIS))

    def _find_rate(self, begun: Look) -> dict[str, Any]:
        asked = self._trainer.args.learning_rate
        found: RateTrials = choose_rate(begun, self._attempt, self._config.rate_trials)
        return {
            "learning_rate": asked * found.factor,
            "trials": {f"{asked * f:g}": look.values for f, look in found.found.items()},
            "trial_tokens": len(found.found) * self._steps.tokens(self._config.rate_steps),
            "harmful": found.harmful,
        }

    def _attempt(self, factor: float) -> Look:
        """Train a few steps at a rate, look, and put every weight back."""
        self._steps.run(factor, self._config.rate_steps)
        look = self._held_out.look()
        self._beginning.restore()
        return look


def _without_step(look: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in look.items() if name != "step"}


def _write_decisions(folder: Path, decisions: dict[str, Any]) -> None:
    """Keep what a stage has decided by its held-out windows, beside its checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    written.note(folder, [_DECISIONS_FILE])
    kept = _read_decisions(folder) | decisions
    write_json(folder / _DECISIONS_FILE, kept | {"sha256": _hash(kept)})


def _read_decisions(folder: Path) -> dict[str, Any]:
    """What has been kept so, or nothing.

    Nothing, too, where the file is damaged: the stage decides again, by the same windows and from the same
    weights, and alike.
    """
    path = folder / _DECISIONS_FILE
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_bytes())
        if kept.pop("sha256") == _hash(kept):
            return kept
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        pass
    _LOGGER.warning("%s is not as it was written: what it held is decided again.", path)
    return {}


def _hash(decisions: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decisions, sort_keys=True).encode()).hexdigest()
