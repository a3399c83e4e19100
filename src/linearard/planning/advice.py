"""What to change in a recipe so that it fits; every change is planned before it is proposed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from linearard.errors import UserError
from linearard.planning.run import RunPlan

if TYPE_CHECKING:
    from linearard.train import RestorationConfig

Overrides = dict[str, str]


@dataclass(frozen=True)
class Change:
    """One change of a recipe, planned.

    Attributes:
        overrides: recipe fields by dotted name, as on the command line.
        effect: what else it changes, in words.
        peak: bytes after it.
        seconds: of the run after it, if known.
    """

    overrides: Overrides
    effect: str
    peak: float
    seconds: float | None


@dataclass(frozen=True)
class Advice:
    """How to fit.

    Attributes:
        single: changes by themselves, those that save memory, in order of preference.
        together: the smallest of their unions found that fits; None: none does.
    """

    single: list[Change]
    together: Change | None


def advise(
    plan: RunPlan,
    stages: Mapping[str, RestorationConfig],
    adapter: Any,
    needed: float,
    rebuild: Callable[[Overrides], RunPlan],
) -> Advice:
    """Find changes after which the run needs at most `needed` bytes.

    Changes that leave the result as it is come first. They are added until the run fits; then each is
    taken out again if the rest suffices.

    Args:
        plan: of the recipe as it is.
        stages, adapter: its checked arguments.
        needed: bytes of the GPU.
        rebuild: the plan with some recipe fields changed; may raise UserError.
    """
    fields = _candidates(plan, stages, adapter)
    single = []
    for overrides, effect in fields:
        change = _tried(overrides, effect, rebuild)
        if change is not None and change.peak < plan.peak:
            single.append(change)
    chosen: list[Change] = []
    for change in single:
        chosen.append(change)
        joined = _joined(chosen, rebuild)
        if joined is not None and joined[1].needed <= needed:
            break
    else:
        return Advice(single, None)
    for change in list(chosen):
        rest = [other for other in chosen if other is not change]
        fewer = _joined(rest, rebuild) if rest else None
        if fewer is not None and fewer[1].needed <= needed:
            chosen, joined = rest, fewer
    overrides, fitting = joined
    effect = "; ".join(dict.fromkeys(c.effect for c in chosen if c.effect))
    return Advice(single, Change(overrides, effect, fitting.peak, fitting.seconds))


def _tried(
    overrides: Overrides, effect: str, rebuild: Callable[[Overrides], RunPlan]
) -> Change | None:
    try:
        changed = rebuild(overrides)
    except UserError:  # the recipe cannot be changed so
        return None
    return Change(overrides, effect, changed.peak, changed.seconds)


def _joined(
    changes: list[Change], rebuild: Callable[[Overrides], RunPlan]
) -> tuple[Overrides, RunPlan] | None:
    overrides: Overrides = {}
    for change in changes:
        overrides |= change.overrides
    try:
        return overrides, rebuild(overrides)
    except UserError:
        return None


def _candidates(
    plan: RunPlan, stages: Mapping[str, RestorationConfig], adapter: Any
) -> list[tuple[Overrides, str]]:
    """Changes worth a try, those that leave the result as it is first."""
    found: list[tuple[Overrides, str]] = []
    if plan.precision == "float32":
        found.append(({"model.dtype": "bfloat16"}, "half precision"))
    for name, stage in stages.items():
        if not stage.recompute:
            found.append(({f"stages.{name}.gradient_checkpointing": "true"}, ""))
        batch = stage.per_device_train_batch_size
        if not stage.parts and batch > 1:
            smaller = {
                f"stages.{name}.per_device_train_batch_size": "1",
                f"stages.{name}.gradient_accumulation_steps": str(
                    batch * stage.gradient_accumulation_steps
                ),
            }
            found.append((smaller, ""))
    for name, stage in stages.items():
        for part, config in stage.parts.items():
            if config.batch_size > 1:
                half = str(config.batch_size // 2)
                found.append(
                    ({f"stages.{name}.parts.{part}.batch_size": half}, "smaller, more steps")
                )
    for name, stage in stages.items():
        if "8bit" not in str(stage.optim):
            states = {f"stages.{name}.optim": "adamw_bnb_8bit"}
            found.append((states, "optimizer states in 8 bits; needs the package bitsandbytes"))
    if plan.shape.dropout:
        found.append(({"adapter.dropout": "0"}, "no dropout"))
    if plan.shape.rank > 16:
        for divisor in (2, 4, 8):
            smaller = {
                "adapter.r": str(plan.shape.rank // divisor),
                "adapter.alpha": str(adapter.alpha / divisor),
            }
            found.append((smaller, f"rank {plan.shape.rank // divisor}"))
    for divisor in (2, 4):
        for name, stage in stages.items():
            for part, config in stage.all_parts.items():
                where = f"stages.{name}.parts.{part}" if part else f"stages.{name}"
                shorter = {f"{where}.window": str(config.window // divisor)}
                if config.sequences is not None:
                    shorter[f"{where}.sequences"] = str(config.sequences * divisor)
                found.append((shorter, f"{where}: windows of {config.window // divisor}"))
    return found
