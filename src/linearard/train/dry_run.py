"""Optimizer, schedule and reader of a stage, made once over a few numbers: a refusal comes early."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import nn

from linearard.architectures import PROJECTIONS
from linearard.errors import RecipeError, shown
from linearard.recipe.stage import RestorationConfig
from linearard.train.optimizers import own_optimizer

_STEPS = 20
#: Optimizers of PyTorch that need no more than a rate; Trainer, which knows all, takes seconds to import.
_PLAIN = ("adamw_torch", "adamw_torch_fused", "sgd")


def try_stage(name: str, stage: RestorationConfig) -> None:
    """Refuse a stage whose optimizer, schedule or reader cannot be made.

    Args:
        name: of the stage.
        stage: its arguments.

    Raises:
        RecipeError: one of them cannot be made, or the schedule gives no rate.
    """
    for what, attempt in (
        ("an optimizer that can be made", _optimizer),
        ("a schedule that can be made", _schedule),
        ("a reader of text that can be made", _reader),
    ):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                attempt(stage)
        except Exception as error:  # of any library
            raise RecipeError(
                expected=f"{what} from stages.{name}",
                got=f"{_asked(what, stage)}: {' '.join(str(error).split())[:300]}".rstrip("."),
                fix=f"Correct or remove it in stages.{name}.",
            ) from error


def _asked(what: str, stage: RestorationConfig) -> str:
    """The fields that decide, as the user may have given them."""
    if "optimizer" in what:
        return f"optim {stage.optimizer_name}, optim_args {shown(stage.optim_args)}"
    if "schedule" in what:
        kind = getattr(stage.lr_scheduler_type, "value", stage.lr_scheduler_type)
        return f"lr_scheduler_type {kind}, lr_scheduler_kwargs {shown(stage.lr_scheduler_kwargs)}"
    return f"dataloader_num_workers {stage.dataloader_num_workers} and the fields beside it"


def _optimizer(stage: RestorationConfig) -> None:
    if own_optimizer(stage) is not None or (
        stage.optimizer_name in _PLAIN and not stage.optim_args and not stage.optim_target_modules
    ):
        return
    from transformers import Trainer

    model = _Model()
    kind, options = Trainer.get_optimizer_cls_and_kwargs(stage, model)
    if not {"optimizer_dict", "model", "params"} & options.keys():
        kind([nn.Parameter(torch.zeros(8, 8))], **options)


class _Model(nn.Module):
    """Names of layers, for optimizers that choose some."""

    def __init__(self) -> None:
        super().__init__()
        for name in PROJECTIONS[0]:
            setattr(self, name, nn.Linear(8, 8, bias=False))


def _schedule(stage: RestorationConfig) -> None:
    from transformers.optimization import get_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=stage.learning_rate)
    schedule: Any = get_scheduler(
        stage.lr_scheduler_type,
        optimizer,
        num_warmup_steps=stage.get_warmup_steps(_STEPS),
        num_training_steps=_STEPS,
        scheduler_specific_kwargs=stage.lr_scheduler_kwargs,
    )
    for _ in range(_STEPS):
        (rate,) = schedule.get_last_lr()
        if not 0 <= rate < math.inf:
            raise ValueError(f"a learning rate of {rate}")
        schedule.step()


def _reader(stage: RestorationConfig) -> None:
    from torch.utils.data import DataLoader

    DataLoader(
        [0],
        num_workers=stage.dataloader_num_workers,
        persistent_workers=stage.dataloader_persistent_workers,
        prefetch_factor=stage.dataloader_prefetch_factor,
        multiprocessing_context=getattr(stage, "dataloader_multiprocessing_context", None),
    )
