"""A plan as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from linearard.planning.advice import Advice, Change
from linearard.planning.rates import Rates, shipped_rates
from linearard.planning.recipe import PlannedRecipe
from linearard.planning.run_plan import PartPlan, RunPlan, StagePlan

_GIB = 2**30


def plan_text(found: PlannedRecipe) -> str:
    """Memory and time of every stage, whether it fits, and what to change if not."""
    plan = found.plan
    lines = [*_head(plan, found.rates), *_stages(plan), *_verdict(plan, found.limit, found.advice)]
    return "\n".join(lines)


def _head(plan: RunPlan, rates: Rates | None) -> Iterator[str]:
    shape = plan.shape
    yield (
        f"{shape.base_parameters / 1e9:.3f} B parameters, {shape.trained_parameters / 1e6:.1f} M "
        f"trained; {plan.precision} precision; one device"
    )
    if rates is None:
        yield "times: not known for this device; `linearard plan --calibrate` measures it"
    else:
        yield f"times: for {rates.device} ({rates.source})"
        measured = rates.versions["torch"]
        if measured != torch.__version__ and rates != shipped_rates():
            yield (
                f"  measured with torch {measured}, now {torch.__version__}: "
                "run `linearard plan --calibrate` again"
            )


def _stages(plan: RunPlan) -> Iterator[str]:
    for stage in plan.stages:
        yield ""
        yield f"stage {stage.name}: {_sizes(stage)}"
        for part in stage.parts:
            yield from _part(part)
        kept = "all of them stay" if stage.kept is None else f"at most {stage.kept} stay"
        yield f"  a checkpoint has {_size(stage.checkpoint)}; {kept}"
    yield ""
    total = [] if plan.tokens is None else [f"{plan.tokens:,} tokens"]
    total += [] if plan.seconds is None else [_time(plan.seconds) + " of training"]
    yield "run: " + ", ".join(
        [
            f"peak {_size(plan.peak)}",
            f"{_size(plan.needed)} of the GPU",
            *total,
            f"trained weights of {_size(plan.final)}",
        ]
    )


def _sizes(stage: StagePlan) -> str:
    found = ["steps: as the data gives" if stage.steps is None else f"{stage.steps:,} steps"]
    if stage.tokens is not None:
        found.append(f"{stage.tokens:,} tokens")
    if stage.step_seconds is not None:
        found.append(f"{_time(stage.step_seconds)} a step")
    if stage.seconds is not None:
        found.append(f"{_time(stage.seconds)} in all")
    return ", ".join(found)


def _part(part: PartPlan) -> Iterator[str]:
    name = f"part {part.name}: " if part.name else ""
    recorded = ", recorded" if part.recorded else ""
    yield f"  {name}batches of {part.batch} x {part.window:,} tokens{recorded}"
    parts = sorted(part.memory.parts.items(), key=lambda item: -item[1])
    memory = ", ".join(f"{label} {_size(size)}" for label, size in parts)
    yield f"    peak {_size(part.memory.peak)} ({part.memory.moment}): {memory}"
    if part.duration is not None:
        spent = sorted(part.duration.parts.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{label} {_time(seconds)}" for label, seconds in spent)
        if part.duration.waiting:
            shown += f", waiting for the host {_time(part.duration.waiting)}"
        rate = part.duration.flops / part.duration.seconds / 1e12
        yield f"    {_time(part.duration.seconds)} a batch, {rate:,.0f} TFLOP/s: {shown}"


def _verdict(plan: RunPlan, limit: float | None, advice: Advice | None) -> Iterator[str]:
    if limit is None:
        yield "Give --gpu-memory to see whether it fits."
        return
    if plan.needed <= limit:
        yield f"fits: needs {_size(plan.needed)} of {_size(limit)} with the CUDA context"
        return
    yield (
        f"does not fit: needs {_size(plan.needed)} with the CUDA context, "
        f"{_size(plan.needed - limit)} more than {_size(limit)}"
    )
    if advice is None:
        return
    yield "each change by itself:"
    # Where two stages are equally full, no change of one makes it need less: then all that save are shown.
    lower = [change for change in advice.single if change.needed < 0.99 * plan.needed]
    for change in lower or advice.single:
        yield f"  {_change(change)}"
    if advice.together is None:
        yield "no union of these fits: take a smaller model or a larger GPU"
    else:
        yield f"fits with: {_change(advice.together)}"


def _change(change: Change) -> str:
    options = " ".join(f"--{name} {value}" for name, value in change.overrides.items())
    time = "" if change.seconds is None else f", {_time(change.seconds)}"
    effect = f" ({change.effect})" if change.effect else ""
    return f"{options}: needs {_size(change.needed)}{time}{effect}"


def _size(count: float) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= 0.1 * _GIB else f"{count / 2**20:.1f} MiB"


def _time(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
