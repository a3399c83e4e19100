"""Where steps of the trainer spend their time: phases of all, kernels of one, passes of one launched."""

from __future__ import annotations

import importlib
import re
from itertools import pairwise
from typing import Any

import torch
import transformers

from benchmarks.record import quantiles
from linearard.train.trainer import RestorationTrainer

_MARKS = ("begin", "gradients", "end")


class Clock(transformers.TrainerCallback):
    """Events of every step that counts: its begin, its clipped gradients, its end.

    Args:
        warm_up: steps that are not counted.
        last: the last one that is.
    """

    def __init__(self, warm_up: int, last: int) -> None:
        self._warm_up, self._last = warm_up, last
        self._events: dict[str, list[torch.cuda.Event]] = {mark: [] for mark in _MARKS}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark("begin", state.global_step + 1)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark("gradients", state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark("end", state.global_step)

    def _mark(self, name: str, step: int) -> None:
        if self._warm_up + (name != "end") <= step <= self._last:
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


class Profile(transformers.TrainerCallback):
    """The kernels of one running step, and the passes of the last step that is launched one by one.

    Args:
        step: which step, from 1.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self._marks: list[torch.cuda.Event] = []
        self._launched = False
        self._events: list[Any] = []
        both = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        self._profiler = torch.profiler.profile(activities=both, acc_events=True)

    def watch(self, trainer: RestorationTrainer) -> None:
        """See the passes of this trainer."""
        trainer.restorable.model.get_decoder().register_forward_pre_hook(self._mark)
        trainer.model.register_forward_pre_hook(self._forget)
        trainer.model.register_forward_hook(self._mark)

    def _forget(self, *_: Any) -> None:
        if not torch.cuda.is_current_stream_capturing():
            self._marks, self._launched = [], True

    def _mark(self, *_: Any) -> None:
        if not torch.cuda.is_current_stream_capturing():
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self._step:
            torch.cuda.synchronize()
            self._profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            torch.cuda.synchronize()
            self._profiler.stop()
            on_device = torch.autograd.DeviceType.CUDA
            self._events = [e for e in self._profiler.events() if e.device_type == on_device]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._launched:
            self._mark()
        self._launched = False

    def read(self, top: int = 30) -> dict[str, Any]:
        """What the result file holds of it: `kernels`, `relation_share`, `passes`, `top`."""
        times: dict[str, list[float]] = {}
        for event in self._events:
            if not event.name.startswith("Optimizer"):  # a mark around kernels that are listed too
                times.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1000)
        relation, sums = relation_kernels(), {}
        for name, spent in times.items():
            kind = kind_of(name, relation)
            sums[kind] = sums.get(kind, 0.0) + sum(spent)
        total = sum(sums.values())
        first = min(event.time_range.start for event in self._events)
        last = max(event.time_range.end for event in self._events)
        sums = {"all": total, **sums, "span": (last - first) / 1000}
        longest = sorted(times, key=lambda name: -sum(times[name]))[:top]
        return {
            "kernels": {name: round(ms, 2) for name, ms in sums.items()},
            "relation_share": round(sums.get("relation", 0.0) / sums["span"], 4),
            "passes": self._passes(),
            "top": [
                {"name": name[:90], "ms": round(sum(times[name]), 3), "calls": len(times[name])}
                for name in longest
            ],
        }

    def _passes(self) -> dict[str, float]:
        names = ["teacher", "student", "backward"]
        names = names[4 - len(self._marks) :]  # without a teacher, one mark less
        torch.cuda.synchronize()
        return {
            name: round(one.elapsed_time(other), 2)
            for name, (one, other) in zip(names, pairwise(self._marks), strict=True)
        }


def relation_kernels() -> set[str]:
    """Names of the relation KL's Triton kernels; those in CUDA are known by their form."""
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
    if name in relation or re.fullmatch(r"(forward|backward|finish)(_plain)?(_ordered)?_\d+", name):
        return "relation"
    if any(mark in lower for mark in ("flash", "fmha", "sdpa", "cudnn_generated")):
        return "attention"
    if any(mark in lower for mark in ("nvjet", "gemm", "cutlass", "splitk")):
        return "products"
    return "copies" if lower.startswith(("memcpy", "memset")) else "elementwise"
