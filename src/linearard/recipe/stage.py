"""The configuration of one training stage: `transformers.TrainingArguments` plus what is ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from linearard.distill import ObjectiveConfig
from linearard.fields import Beside, Rule, a_mapping, check_fields, described, number, one_of, whole
from linearard.recipe.held_out import HeldOutConfig
from linearard.recipe.trainer_fields import SCHEDULES, TRAINER_RULES, kept_off

_WINDOW = whole(2, 1 << 27)
_SEQUENCES = whole(1).or_null()
_BATCH = whole(1, 1 << 20)
_SECTION = a_mapping()
_RATE = number(0, 1e30, above=True)
_EVERY = number(0, 1e9, above=True)


@dataclass
class PartConfig:
    """One of several kinds of batches that a stage reads in turn."""

    objective: ObjectiveConfig = described(ObjectiveConfig, "The loss of this part.")
    window: int = described(4096, "Tokens in a window.", _WINDOW)
    sequences: int | None = described(
        None, "Windows of this part; null: all the data has.", _SEQUENCES
    )
    batch_size: int = described(1, "Windows in a batch, a device.", _BATCH)
    data: dict[str, Any] = described(dict, "Fields of `data` that differ in this part.", _SECTION)

    def __post_init__(self) -> None:
        if isinstance(self.objective, dict):
            self.objective = ObjectiveConfig(**self.objective)
        check_fields(self)


@dataclass
class RestorationConfig(TrainingArguments):
    """One stage: an objective on windows of one length, or several such parts in turn.

    The fields of `transformers.TrainingArguments` are accepted beside the ones described here;
    `output_dir`, `seed` and the device are set by the run. The defaults are the paper's stage 1.
    """

    #: Ranges of the fields that are inherited.
    inherited_rules: ClassVar[dict[str, Rule]] = TRAINER_RULES

    window: int = described(4096, "Tokens in a training window.", _WINDOW)
    sequences: int | None = described(
        None, "Windows to train on, each once an epoch; null: all the data has.", _SEQUENCES
    )
    objective: ObjectiveConfig = described(ObjectiveConfig, "The loss; see its own fields.")
    data: dict[str, Any] = described(dict, "Fields of `data` that differ in this stage.", _SECTION)
    parts: dict[str, Any] = described(
        dict,
        "Several kinds of batches in turn, spread evenly over the stage: by name, objective, window, "
        "sequences, batch_size and data. With gradient_accumulation_steps a step mixes as many.",
        _SECTION,
    )
    lr_floor: float = described(
        0.9, "The cosine schedule ends at this fraction of the learning rate.", number(0, 1)
    )
    learning_rate: float = described(2e-5, "Peak learning rate of AdamW.", _RATE)
    lr_scheduler_type: str = described(
        "cosine_with_min_lr",
        "Shape of the schedule, by transformers' names: linear, constant, …",
        one_of(SCHEDULES),
    )
    warmup_steps: float = described(
        4, "Warm-up steps (below 1: fraction of all steps).", number(0, 1e9)
    )
    max_grad_norm: float = described(5.0, "Gradients are clipped to this norm.", number(0, 1e30))
    num_train_epochs: float = described(1.0, "Passes over the windows.", number(0, 1e6, above=True))
    per_device_train_batch_size: int = described(
        1,
        "Windows in a batch, a device.",
        _BATCH,
        Beside(lambda c: c.per_device_train_batch_size == 1 or not c.parts, "1 beside parts"),
    )
    gradient_accumulation_steps: int = described(1, "Batches in an optimizer step.", _BATCH)
    gradient_checkpointing: bool = described(
        False, "Recompute layers in the backward pass: less memory, more time."
    )
    kept_layers: int = described(
        0,
        "With gradient_checkpointing: as many of the last layers are not recomputed, where memory allows.",
        whole(0, 100_000),
    )
    muon: bool = described(
        False,
        "Muon instead of `optim`, for matrices: momentum whose singular values are made equal, in steps of "
        "AdamW's size; vectors (biases) are trained by AdamW. Measured with adapter.kind direct.",
        None,
        Beside(lambda c: not c.muon or c._has_default_optimizer, "false beside optim"),
    )
    weight_interpolation: float = described(
        1.0,
        "Share of what the stage changes in the trained weights that is kept at its end: below 1, they end "
        "between where it began and where it arrived. The stage's own checkpoints hold all of it. "
        "Measured with adapter.kind direct.",
        number(0, 1, above=True, words="a share"),
        formerly="keep",
    )
    held_out: HeldOutConfig = described(
        lambda: HeldOutConfig(sequences=0),
        "Held-out windows that the stage is watched by, and what they decide; see its own fields.",
    )
    sequence_parallel: int = described(
        1,
        "As many processes share each window, for windows whose activations do not fit one GPU: every one "
        "has some of the tokens, and in attention some of the heads of all tokens (Ulysses). Of other "
        "numbers of processes, the greatest common divisor.",
        whole(1, 1 << 16),
    )
    offload_optimizer: bool = described(
        False,
        "Keep AdamW's moments in host memory: 8 bytes a trained weight less on the GPU.",
        None,
        Beside(
            lambda c: not c.offload_optimizer or c.optimizer_name.startswith("adamw_torch"),
            "false with another optimizer than adamw_torch",
        ),
    )
    offload_teacher: bool = described(
        False,
        "Keep the teacher's queries, keys and values in host memory until the student comes to their "
        "layer.",
    )
    cuda_graphs: bool = described(
        True,
        "On one GPU, record a step's kernels and replay them, which small models gain most from; of several "
        "parts, those that wait for launches. "
        "Not with gradient_checkpointing, offload_teacher or skip_positions.",
    )
    logging_steps: float = described(1, "Log every this many steps.", _EVERY)
    save_steps: float = described(50, "Write a checkpoint every this many steps.", _EVERY)
    save_total_limit: int | None = described(
        2, "Complete checkpoints kept per stage; null: all.", whole(1).or_null()
    )
    logging_nan_inf_filter: bool = described(
        False,
        "Kept off: a loss that is not finite ends the run with its state saved.",
        kept_off("losses that are not finite end the run"),
    )
    dataloader_pin_memory: bool = described(False, "Pin batches in host memory.")
    remove_unused_columns: bool = described(
        False,
        "Kept off: batches hold no unused columns.",
        kept_off("batches hold no unused columns"),
    )

    def __post_init__(self) -> None:
        if isinstance(self.objective, dict):
            self.objective = ObjectiveConfig(**self.objective)
        if isinstance(self.held_out, dict):
            self.held_out = HeldOutConfig(**self.held_out)
        self.parts = {
            name: part if isinstance(part, PartConfig) else PartConfig(**part)
            for name, part in self.parts.items()
        }
        if self.parts:  # a batch is one item, and the items stand in their order
            self.train_sampling_strategy = "sequential"
        check_fields(self)
        if self.lr_scheduler_type == "cosine_with_min_lr" and not self.lr_scheduler_kwargs:
            self.lr_scheduler_kwargs = {"min_lr_rate": self.lr_floor}
        # Recomputation is switched on by the module that knows where a pass ends early, not by Trainer,
        # whose name for it differs between the versions of transformers that we support.
        new_name = getattr(self, "activation_checkpointing", None)
        self.recompute = bool(self.gradient_checkpointing or new_name)
        self.gradient_checkpointing = TrainingArguments.gradient_checkpointing  # type: ignore[assignment]
        if new_name:  # since transformers 5.24
            self.activation_checkpointing = TrainingArguments.activation_checkpointing
        super().__post_init__()

    @property
    def _has_default_optimizer(self) -> bool:
        (default,) = (field.default for field in fields(TrainingArguments) if field.name == "optim")
        return getattr(self.optim, "value", self.optim) == default

    @property
    def optimizer_name(self) -> str:
        """The name of `optim`, which `TrainingArguments` makes an enumeration's member, or muon."""
        return "muon" if self.muon else str(getattr(self.optim, "value", self.optim))

    @property
    def records_graphs(self) -> bool:
        """Whether a batch is the same kernels every time, so that one GPU can record and replay them."""
        return (
            self.cuda_graphs
            and not self.fp16  # the scaler looks at the gradients
            and not self.offload_teacher
            and not self.recompute  # keeps and restores the state of random numbers from the host
            and not any(part.objective.skip_positions for part in self.all_parts.values())
            and "lomo" not in self.optimizer_name  # these update weights within the backward pass
            and not self.optimizer_name.endswith("_layerwise")
        )

    @property
    def device(self) -> torch.device:
        """The device of this process; the CPU has no number, which transformers 5.17 cannot resume on."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def all_parts(self) -> dict[str, PartConfig]:
        """The parts by name; of a stage without, itself under the name ""."""
        return parts_of(vars(self))

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values; loggers write them down."""
        parts = {name: asdict(part) for name, part in self.parts.items()}
        ours = {
            "objective": asdict(self.objective),
            "held_out": asdict(self.held_out),
            "parts": parts,
        }
        return super().to_dict() | ours


#: Fields of a stage without parts that make its one part, by the names that a part has for them.
_OF_A_PART = {
    "objective": "objective",
    "window": "window",
    "sequences": "sequences",
    "per_device_train_batch_size": "batch_size",
    "data": "data",
}


def parts_of(stage: Mapping[str, Any]) -> dict[str, PartConfig]:
    """The parts of a stage by name; of one without, itself under the name "".

    Args:
        stage: fields of `RestorationConfig`, all of them or some.
    """
    given = {ours: stage[name] for name, ours in _OF_A_PART.items() if name in stage}
    return stage.get("parts") or {"": PartConfig(**given)}


def own_fields() -> list[Any]:
    """The dataclass fields described in this file, for `--help`."""
    return [
        item for item in fields(RestorationConfig) if item.name in RestorationConfig.__annotations__
    ]
