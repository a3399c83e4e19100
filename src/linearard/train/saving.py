"""`transformers.Trainer` whose checkpoints are whole, and hold nothing that went wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from linearard.errors import NonFiniteLossError
from linearard.model import (
    UNFINISHED,
    RestorableModel,
    check_room,
    check_undamaged,
    check_weights,
    load_weights,
    out_of_range,
    room_for_checkpoint,
    write_checkpoint,
    written,
)
from linearard.train import checkpoints
from linearard.train.whole_states import load_whole_state, whole_state

#: Names that `Trainer` has for these files.
_OPTIMIZER_FILE, _SCHEDULER_FILE = "optimizer.pt", "scheduler.pt"
#: Moments of AdamW are squares: beyond this, the next one is infinite.
_LARGEST_STATE = 1e30


class SavingTrainer(Trainer):
    """Writes a checkpoint of a restorable model beside its place and checks it before it gets there.

    Attributes:
        restorable: whose adapter is trained.
        stage: the stage's name.
    """

    restorable: RestorableModel
    stage: str
    _metadata: dict[str, Any]  # further entries of a checkpoint
    _keep: int | None  # complete checkpoints that stay
    _seconds_before: float = 0.0
    _is_saving: bool = False
    _gathered: dict[str, Tensor]  # the trained weights, of a model divided among processes too

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        raise NotImplementedError

    def check_state(self) -> None:
        """Refuse weights and optimizer states that are no result of a training.

        Raises:
            NonFiniteLossError: one is not finite or absurdly large. What was saved before is kept.
        """
        step = self.state.global_step
        after = f"after step {step} of stage {self.stage!r}"
        try:
            check_weights(self.restorable.adapter, f"the weights {after}")
            if found := self._bad_optimizer_state():
                raise NonFiniteLossError(
                    expected=f"the optimizer's state {after} to be finite and none beyond "
                    f"{_LARGEST_STATE:.0e}",
                    got=found,
                    fix="",
                )
        except NonFiniteLossError as error:
            before = checkpoints.latest_complete(Path(self.args.output_dir))
            raise error.reworded(
                fix="Nothing of it was saved"
                + (f"; {before}, which is good, is kept. " if before else ". ")
                + "Lower learning_rate, raise adam_epsilon or set model.dtype to float32, and start "
                "again with --overwrite."
            ) from None

    def check_room(self) -> None:
        """Refuse, before the first step, a disk that the checkpoints of the stage do not fit on.

        Counted are trained weights and the states of AdamW or Muon, of as many checkpoints as there are
        at a time, and the weights once more for `final`.

        Raises:
            CheckpointError: it has too little room.
        """
        if not self.args.should_save:
            return
        stage_dir = Path(self.args.output_dir)
        stage_dir.mkdir(parents=True, exist_ok=True)
        weights = sum(p.numel() * p.element_size() for p in self.restorable.adapter.parameters())
        name = self.args.optimizer_name
        states = 2 if name.startswith("adamw_torch") else 1 if name == "muon" else 0
        every, steps = self.state.save_steps, self.state.max_steps
        saves = math.ceil(steps / every) if self.args.save_strategy == "steps" and every else 1
        number = min(saves, (self._keep or saves) + 1)  # the oldest goes after the newest has come
        there = len(
            [p for _, p in checkpoints.all_checkpoints(stage_dir) if written.is_complete(p)]
        )
        check_room(
            stage_dir,
            weights * (max(number - there, 0) * (1 + states) + 1),
            f"the checkpoints of stage {self.stage!r}",
            "Free some, lower save_total_limit, raise save_steps, or choose another output_dir.",
        )

    def _mend_state(self) -> bool:
        """Whether a state that must not be saved has been replaced by a good one."""
        return False

    def _bad_optimizer_state(self) -> str:
        if self.optimizer is None:
            return ""
        states = self.optimizer.state_dict()["state"]  # of shares, where weights are divided
        named = (
            (f"{name} of weight {number}", tensor)
            for number, state in states.items()
            for name, tensor in (state.items() if isinstance(state, dict) else ())
            if hasattr(tensor, "is_floating_point")
        )
        return out_of_range(named, _LARGEST_STATE)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / UNFINISHED) if self._is_saving else folder

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """See `Trainer.save_model`; all processes must call it at once."""
        self._gather()
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self._gathered = {}

    def _gather(self) -> None:
        self._gathered = self.restorable.adapter.gathered()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:  # since transformers 5.24 every process comes here
            return
        self._write_checkpoint(
            Path(output_dir or self.args.output_dir),
            stage=self.stage,
            step=self.state.global_step,
            seconds=round(self.seconds, 3),
            **self._metadata,
        )

    def _write_checkpoint(self, folder: Path, **extra: Any) -> None:
        write_checkpoint(self.restorable, folder, self._gathered, **extra)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.restorable.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_state(self.optimizer)
        if state is not None:
            torch.save(state, Path(output_dir) / _OPTIMIZER_FILE)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.restorable.sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        options = {"map_location": "cpu", "weights_only": True}
        state = torch.load(Path(checkpoint) / _OPTIMIZER_FILE, mmap=True, **options)
        load_whole_state(self.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULER_FILE, **options))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            self.check_state()
        except NonFiniteLossError:
            if not self._mend_state():
                raise
        stage_dir = Path(self.args.output_dir)
        with room_for_checkpoint(stage_dir):
            try:
                if self.args.should_save:
                    checkpoints.begin(stage_dir)
                self.accelerator.wait_for_everyone()
                self._is_saving = True
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    checkpoints.finish(stage_dir, self.state.global_step, self._keep)
            finally:
                self._is_saving = False
                if self.args.should_save:  # room for others, where there was too little
                    checkpoints.abandon(stage_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        check_undamaged(folder)
        stored = load_weights(self.restorable, folder)
        self._seconds_before = stored.get("seconds", 0.0)
        checkpoints.check_same_text(stored, self._metadata.get("data"), resume_from_checkpoint)
