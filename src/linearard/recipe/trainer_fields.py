"""What the fields that a stage has from `transformers.TrainingArguments` may hold."""

from __future__ import annotations

import logging

from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames, trainer_log_levels

from linearard.fields import Rule, a_list, a_mapping, number, one_of, text, whole

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


#: Fields of `TrainingArguments` that a stage takes beside its own: a run with them that is killed and
#: resumed ends in the bits of one that was not (tests/train/test_stage_fields.py).
STAGE_FIELDS = (
    "max_steps",
    "lr_scheduler_kwargs",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "train_sampling_strategy",
    "torch_empty_cache_steps",
    "save_strategy",
    "logging_strategy",
    "logging_first_step",
    "log_level",
    "log_level_replica",
    "disable_tqdm",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "ddp_bucket_cap_mb",
    "ddp_timeout",
)

_AT_THE_TOP = "Set it at the top of the recipe."
_UNDER_MODEL = "Set model.dtype and model.device."
_AFTERWARDS = "The section evaluation measures the restored model after training."
_SEVERAL_GPUS = (
    "Start several processes with torchrun; model.sharded divides the model among them, and "
    "sequence_parallel each window."
)
_NOT_OURS = "The losses of a stage are those of its objective."
_WHOLE = "Remove it: a checkpoint holds all that a resumed run needs."
#: The way to what others are wanted for.
_INSTEAD = {
    "output_dir": _AT_THE_TOP,
    "seed": _AT_THE_TOP,
    "full_determinism": "Set deterministic at the top of the recipe.",
    "data_seed": "Set data.seed.",
    "report_to": _AT_THE_TOP,
    "run_name": "Trackers know a run by its output folder.",
    "bf16": _UNDER_MODEL,
    "fp16": _UNDER_MODEL,
    "use_cpu": _UNDER_MODEL,
    "resume_from_checkpoint": "Use --resume.",
    "do_eval": _AFTERWARDS,
    "eval_strategy": _AFTERWARDS,
    "eval_on_start": _AFTERWARDS,
    "load_best_model_at_end": _AFTERWARDS,
    "metric_for_best_model": _AFTERWARDS,
    "label_smoothing_factor": _NOT_OURS,
    "neftune_noise_alpha": _NOT_OURS,
    "fsdp": _SEVERAL_GPUS,
    "fsdp_config": _SEVERAL_GPUS,
    "deepspeed": _SEVERAL_GPUS,
    "parallelism_config": _SEVERAL_GPUS,
    "auto_find_batch_size": "Set per_device_train_batch_size.",
    "gradient_checkpointing_kwargs": "Set gradient_checkpointing alone.",
    "activation_checkpointing": "Set gradient_checkpointing.",
    "activation_checkpointing_kwargs": "Set gradient_checkpointing alone.",
    "use_liger_kernel": "Patch the model with liger_kernel and hand it to RestorableModel.",
    "push_to_hub": "Upload what `linearard export` writes.",
    "save_only_model": _WHOLE,
    "ignore_data_skip": "Remove it: a resumed run reads each window as often as any other.",
    "restore_callback_states_from_checkpoint": _WHOLE,
}


def instead_of(name: str) -> str | None:
    """What to do instead of setting a field of `TrainingArguments` in a stage; None: it can be set."""
    if name in STAGE_FIELDS:
        return None
    return _INSTEAD.get(
        name, "Remove it; the fields that a stage takes stand in `linearard train --help`."
    )


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
    "ignore_data_skip": kept_off("a resumed stage would read windows again"),
    "save_only_model": kept_off("a stage could not be resumed"),
}
