"""What the fields that a stage has from `transformers.TrainingArguments` may hold."""

from __future__ import annotations

import logging

from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames, trainer_log_levels

from linearard.fields import Rule, a_list, a_mapping, flag, number, one_of, text, whole

#: Schedules by transformers' names, but those that wait for a metric of an evaluation.
SCHEDULES = tuple(kind.value for kind in SchedulerType if kind.value != "reduce_lr_on_plateau")
_OPTIMIZERS = tuple(kind.value for kind in OptimizerNames)
_LEVELS = tuple(trainer_log_levels) or tuple(map(str.lower, logging.getLevelNamesMapping()))
_INTERVALS = ("no", "steps", "epoch")


def _value(rule: Rule) -> Rule:
    """The rule for a name, or for the member of an enumeration that stands for it."""
    return Rule(lambda v: rule.right(getattr(v, "value", v)), rule.expected)


def kept_off(why: str) -> Rule:
    """False alone."""
    return Rule(lambda v: v is False, f"false: {why}")


_MOMENT = number(0, 1, below=True)
TRAINER_RULES: dict[str, Rule] = {
    "max_steps": Rule(
        lambda v: type(v) is int and (v == -1 or 0 < v < 2**31), "a positive whole number, or -1"
    ),
    "lr_scheduler_kwargs": a_mapping().or_null(),
    "optim": _value(one_of(_OPTIMIZERS)),
    "optim_args": text("text such as a=1,b=2").or_null(),
    "weight_decay": number(0, 1000),
    "adam_beta1": _MOMENT,
    "adam_beta2": _MOMENT,
    "adam_epsilon": number(0, 1),
    "torch_empty_cache_steps": whole(1).or_null(),
    "logging_strategy": _value(one_of(_INTERVALS)),
    "log_level": one_of(_LEVELS),
    "log_level_replica": one_of(_LEVELS),
    "save_strategy": _value(one_of(_INTERVALS)),
    "dataloader_num_workers": whole(0, 1024),
    "dataloader_prefetch_factor": whole(1, 1024).or_null(),
    "dataloader_multiprocessing_context": one_of(("fork", "spawn", "forkserver")).or_null(),
    "ddp_bucket_cap_mb": whole(1, 1 << 20).or_null(),
    "ddp_timeout": whole(1),
    "train_sampling_strategy": one_of(("random", "sequential")),
    "label_names": a_list(text()).or_null(),
    "full_determinism": flag(),
    "ignore_data_skip": flag(),
}
