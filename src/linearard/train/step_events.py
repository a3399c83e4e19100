"""The moments of a step at which the trainer checks what it has done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from linearard.train.trainer import RestorationTrainer


class StepEvents(TrainerCallback):
    """Hands the moments of a step to the trainer, which refuses bad ones.

    Args:
        trainer: of the stage.
    """

    def __init__(self, trainer: RestorationTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the room for checkpoints."""
        self._trainer.check_room()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember a good step."""
        self._trainer.end_good_step(control)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Between the batches of a step."""
        self._trainer.end_within_step()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse a step that is not finite."""
        self._trainer.refuse_bad_step()
