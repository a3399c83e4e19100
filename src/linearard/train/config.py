"""The configuration of one training stage: `transformers.TrainingArguments` plus what is ours."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from transformers import TrainingArguments

from linearard.distill import ObjectiveConfig
from linearard.errors import RecipeError
from linearard.fields import described


@dataclass
class RestorationConfig(TrainingArguments):
    """One stage: an objective on windows of one length.

    Every field of `transformers.TrainingArguments` is accepted beside the ones described here;
    `output_dir`, `seed` and the device are set by the run. The defaults are the paper's stage 1.
    """

    window: int = described(4096, "Tokens in a training window.")
    sequences: int | None = described(
        None, "Windows to train on, each once an epoch; null: all the data has."
    )
    objective: ObjectiveConfig = described(ObjectiveConfig, "The loss; see its own fields.")
    data: dict[str, Any] = described(dict, "Fields of `data` that differ in this stage.")
    lr_floor: float = described(
        0.9, "The cosine schedule ends at this fraction of the learning rate."
    )
    learning_rate: float = described(2e-5, "Peak learning rate of AdamW.")
    lr_scheduler_type: str = described(
        "cosine_with_min_lr", "Shape of the schedule, by transformers' names: linear, constant, …"
    )
    warmup_steps: float = described(4, "Warm-up steps (below 1: fraction of all steps).")
    max_grad_norm: float = described(5.0, "Gradients are clipped to this norm.")
    num_train_epochs: float = described(1.0, "Passes over the windows.")
    per_device_train_batch_size: int = described(1, "Windows in a batch, a device.")
    gradient_accumulation_steps: int = described(1, "Batches in an optimizer step.")
    gradient_checkpointing: bool = described(
        False, "Recompute layers in the backward pass: less memory, more time."
    )
    logging_steps: float = described(1, "Log every this many steps.")
    save_steps: float = described(50, "Write a checkpoint every this many steps.")
    save_total_limit: int | None = described(2, "Complete checkpoints kept per stage.")
    logging_nan_inf_filter: bool = described(
        False, "Kept off: a loss that is not finite ends the run with its state saved."
    )
    dataloader_pin_memory: bool = described(False, "Pin batches in host memory.")
    remove_unused_columns: bool = described(False, "Kept off: batches hold no unused columns.")
    report_to: str | list[str] | None = described("none", "tensorboard, wandb, …, all or none.")

    def __post_init__(self) -> None:
        if isinstance(self.objective, dict):
            self.objective = ObjectiveConfig(**self.objective)
        for name in ("window", "per_device_train_batch_size", "gradient_accumulation_steps"):
            _check(
                isinstance(getattr(self, name), int) and getattr(self, name) >= 1,
                self,
                name,
                "a positive integer",
            )
        _check(self.window >= 2, self, "window", "at least 2 tokens")
        _check(
            self.sequences is None or self.sequences >= 1,
            self,
            "sequences",
            "null or a positive integer",
        )
        _check(0 <= self.lr_floor <= 1, self, "lr_floor", "a fraction from 0 to 1")
        _check(0 < self.learning_rate < math.inf, self, "learning_rate", "positive")
        _check(self.save_strategy != "best", self, "save_strategy", "steps, epoch or 'no'")
        _check(0 < self.num_train_epochs < math.inf, self, "num_train_epochs", "positive")
        if self.lr_scheduler_type == "cosine_with_min_lr" and not self.lr_scheduler_kwargs:
            self.lr_scheduler_kwargs = {"min_lr_rate": self.lr_floor}
        # Recomputation is switched on by the module that knows where a pass ends early, not by Trainer,
        # whose name for it differs between the versions of transformers that we support.
        self.recompute = bool(self.gradient_checkpointing)
        self.gradient_checkpointing = TrainingArguments.gradient_checkpointing
        super().__post_init__()

    @property
    def device(self) -> torch.device:
        """The device of this process; the CPU has no number, which transformers 5.17 cannot resume on."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values; loggers write them down."""
        return super().to_dict() | {"objective": asdict(self.objective)}


def own_fields() -> list[Any]:
    """The dataclass fields described in this file, for `--help`."""
    return [
        item for item in fields(RestorationConfig) if item.name in RestorationConfig.__annotations__
    ]


def _check(good: bool, config: RestorationConfig, name: str, expected: str) -> None:
    if not good:
        raise RecipeError(
            expected=f"{name} to be {expected}",
            got=repr(getattr(config, name)),
            fix=f"Set {name} of the stage.",
        )
