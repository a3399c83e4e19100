"""Where a step of the trainer spends its time: phases of running steps, kernels of one that is launched."""

from __future__ import annotations

import importlib
from itertools import pairwise
from typing import Any

import torch
import transformers
from torch.utils.data import Dataset

from benchmarks.record import quantiles
from linearard.train.trainer import RestorationTrainer

_MARKS = ("begin", "gradients", "end")


class Clock(transformers.TrainerCallback):
    """Events of every step after the warm-up: its begin, its clipped gradients, its end.

    Args:
        warm_up: steps that are not counted.
    """

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self._events: dict[str, list[torch.cuda.Event]] = {mark: [] for mark in _MARKS}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark("begin", state.global_step + 1)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark("gradients", state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark("end", state.global_step)

    def _mark(self, name: str, step: int) -> None:
        if step > self._warm_up or (name == "end" and step == self._warm_up):
            self._events[name].append(torch.cuda.Event(enable_timing=True))
            self._events[name][-1].record()

    def milliseconds(self) -> list[float]:
        """Of each counted step, from the end of the one before."""
        torch.cuda.synchronize()
        return [one.elapsed_time(other) for one, other in pairwise(self._events["end"])]

    def phases(self) -> dict[str, float]:
        """Median milliseconds: fetching a batch and the log; forward, backward, clipping; the optimizer."""
        begin, gradients, end = (self._events[mark] for mark in _MARKS)
        pairs = {
            "between": zip(end, begin, strict=False),
            "batch": zip(begin, gradients, strict=True),
            "optimizer": zip(gradients, end[1:], strict=True),
        }
        torch.cuda.synchronize()
        return {
            name: quantiles([a.elapsed_time(b) for a, b in some])["p50"]
            for name, some in pairs.items()
        }


def profile(trainer: RestorationTrainer, text: Dataset, top: int = 40) -> dict[str, Any]:
    """The kernels of one more step (without optimizer), launched one by one, and its passes.

    Returns:
        `kernels` (ms in all and by kind), `relation_share`, `passes` (ms of the teacher's pass, the
        student's and the backward pass), `top` (name, ms and calls of the longest kernels).
    """
    batch = {"input_ids": text[0]["input_ids"][None], "block": torch.tensor([0])}
    trainer.current_gradient_accumulation_steps = 1
    marks: list[torch.cuda.Event] = []

    def mark(*_: Any) -> None:
        marks.append(torch.cuda.Event(enable_timing=True))
        marks[-1].record()

    handles = [
        trainer.restorable.model.get_decoder().register_forward_pre_hook(mark),
        trainer.model.register_forward_hook(mark),
    ]
    both = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=both) as record:
        trainer.training_step(trainer.model_wrapped, batch)
        mark()
        torch.cuda.synchronize()
    for handle in handles:
        handle.remove()
    names = ["student", "backward"]
    if len(marks) == 4:  # else there is no teacher
        names.insert(0, "teacher")
    events = [e for e in record.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda e: -e.self_device_time_total)
    relation, sums = relation_kernels(), {}
    for event in events:
        kind = kind_of(event.key, relation)
        sums[kind] = sums.get(kind, 0.0) + event.self_device_time_total / 1000
    total = sum(sums.values())
    return {
        "kernels": {"all": round(total, 2), **{k: round(v, 2) for k, v in sums.items()}},
        "relation_share": round(sums.get("relation", 0.0) / total, 4) if total else None,
        "passes": {
            name: round(a.elapsed_time(b), 2)
            for name, (a, b) in zip(names, pairwise(marks), strict=True)
        },
        "top": [
            {"name": e.key[:90], "ms": round(e.self_device_time_total / 1000, 3), "calls": e.count}
            for e in events[:top]
        ],
    }


def relation_kernels() -> set[str]:
    """Names of the relation KL's Triton kernels."""
    import triton

    names = set()
    package = "linearard.ops.relation_kl.triton"
    for module in ("forward", "backward", "backward_kernel"):
        for thing in vars(importlib.import_module(f"{package}.{module}")).values():
            if isinstance(thing, triton.runtime.jit.JITFunction) and package in thing.__module__:
                names.add(thing.__name__)
    return names


def kind_of(name: str, relation: set[str]) -> str:
    """What a kernel is for, by its name."""
    lower = name.lower()
    if name in relation or "relation" in lower:
        return "relation"
    if any(mark in lower for mark in ("flash", "fmha", "sdpa", "cudnn_generated")):
        return "attention"
    if any(mark in lower for mark in ("nvjet", "gemm", "cutlass", "splitk")):
        return "products"
    return "copies" if lower.startswith(("memcpy", "memset")) else "elementwise"
