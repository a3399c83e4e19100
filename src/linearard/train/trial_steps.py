"""A few optimizer steps apart from a training: for trials whose weights are put back."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from linearard.train.clipping import clip_gradients

if TYPE_CHECKING:
    from linearard.train.trainer import RestorationTrainer

_WARM_UP = 0.25  # share of the steps in which the rate rises


class TrialSteps:
    """Runs the first steps of a stage, in the order of its data, without Trainer's loop.

    Args:
        trainer: of the stage, before it trains.
    """

    def __init__(self, trainer: RestorationTrainer) -> None:
        self._trainer = trainer

    def run(self, factor: float, steps: int) -> None:
        """Train at `factor` times the stage's learning rate, with an optimizer of its own.

        Args:
            factor: of the rate.
            steps: optimizer steps.
        """
        trainer = self._trainer
        parameters = trainer.restorable.adapter.parameters()
        trainer.optimizer = None
        optimizer = trainer.create_optimizer()
        rates = [factor * group["lr"] for group in optimizer.param_groups]
        for step in range(steps):
            warm = min(1.0, (step + 1) / max(1.0, _WARM_UP * steps))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = warm * rate
            self._backward(step)
            clip_gradients(parameters, trainer.args.max_grad_norm)
            optimizer.step()
            for parameter in parameters:
                parameter.grad = None
        trainer.optimizer = None  # training makes its own, with moments of zero

    def tokens(self, steps: int) -> int:
        """Tokens of the first so many steps."""
        batches = [self._batch(number) for step in range(steps) for number in self._numbers(step)]
        return sum(batch["input_ids"].numel() for batch in batches)

    def _backward(self, step: int) -> None:
        trainer, casts = self._trainer, contextlib.nullcontext()
        if trainer.args.bf16 or trainer.args.fp16:
            casts = trainer.restorable.adapter.without_casts()
        numbers = self._numbers(step)
        trainer.model.train()
        with casts:
            for number in numbers:
                inputs = trainer._prepare_inputs(self._batch(number))
                inputs.pop("block")
                with trainer.restorable.tap.step():
                    # Training's model has this from accelerate's wrapper; LoRA's products need it.
                    with trainer.accelerator.autocast(), trainer.compute_loss_context_manager():
                        outputs = trainer.model(**inputs)
                    (outputs["loss"] / len(numbers)).backward()
        trainer.average_shared_gradients()

    def _numbers(self, step: int) -> range:
        size = self._trainer.args.gradient_accumulation_steps
        return range(step * size, (step + 1) * size)

    def _batch(self, number: int) -> dict[str, Any]:
        size, data = self._trainer.args.per_device_train_batch_size, self._trainer.train_dataset
        return self._trainer.data_collator(
            [data[(number * size + row) % len(data)] for row in range(size)]
        )
