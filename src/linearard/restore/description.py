"""A plan of `restore` in words."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from linearard.restore.choice import Choice
from linearard.restore.stages import WINDOWS

if TYPE_CHECKING:
    from linearard.planning.run_plan import RunPlan
    from linearard.restore.run import RestorePlan


def fitted_windows(plan: RunPlan, target: int) -> Choice:
    """Those of a run whose long windows were made shorter than was decided without a look at memory."""
    counts: Counter[int] = Counter()
    for part in (part for stage in plan.stages for part in stage.parts):
        counts[part.window] += (part.batches or 0) * part.batch
    each = [f"{counts[window]:,} of {window:,}" for window in sorted(counts)]
    value = f"{', '.join(each[:-1])} and {each[-1]} tokens" if each[1:] else f"{each[0]} tokens"
    return Choice(WINDOWS, value, f"{max(counts):,} instead of {target:,} tokens fit the GPU")


def describe(plan: RestorePlan) -> list[str]:
    """The plan in lines: what, and why."""
    lines = [str(choice) for choice in plan.choices]
    planned = plan.planned.plan
    where = "memory" if plan.recipe.model.device == "cpu" else "the GPU"
    if plan.several is not None:
        memory = f"{plan.several.memory / 2**30:.1f} GiB of each of {plan.several.layout.gpus} GPUs"
    else:
        memory = f"{planned.needed / 2**30:.1f} GiB of {where}"
    if plan.planned.limit is not None:
        memory += f" (of {plan.planned.limit / 2**30:.1f} GiB that it may take)"
    time, rates = "", plan.planned.rates
    if planned.seconds is not None and rates is not None:
        time = f", {planned.seconds / 60:.1f} minutes of training steps on an {rates.device} (another GPU "
        time += "takes its own time; what the model writes, trials and measuring are not counted)"
    lines.append(f"planned: {memory}{time}, {planned.tokens:,} tokens without trials")
    longest = max(part.window for stage in planned.stages for part in stage.parts)
    if longest < plan.target and plan.recipe.model.device != "cpu":
        mended = "A larger GPU or a smaller model trains them."
        if plan.lacks_text:
            mended = (
                "--data has too few tokens for longer ones: give more text, books for instance."
            )
        lines.append(
            f"warning: no window above {longest:,} tokens is trained; how {plan.target:,} are read is "
            f"measured at the end. {mended}"
        )
    return lines
