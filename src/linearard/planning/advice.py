"""What to change in a recipe so that it fits; every change is planned before it is proposed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from linearard.errors import UserError
from linearard.model import names_gguf
from linearard.planning.run_plan import RunPlan

if TYPE_CHECKING:
    from linearard.recipe import Recipe, RestorationConfig

Overrides = dict[str, str]


@dataclass(frozen=True)
class Change:
    """One change of a recipe, planned.

    Attributes:
        overrides: recipe fields by dotted name, as on the command line.
        effect: what else it changes, in words.
        needed: bytes of the GPU after it.
        seconds: of the run after it, if known.
    """

    overrides: Overrides
    effect: str
    needed: float
    seconds: float | None


@dataclass(frozen=True)
class Advice:
    """How to fit.

    Attributes:
        single: changes by themselves, those that save memory, in order of preference.
        together: the smallest of their unions found that fits; None: none does.
        least: bytes of the GPU that the run needs with everything that saves memory.
    """

    single: list[Change]
    together: Change | None
    least: float


def advise(
    plan: RunPlan,
    stages: Mapping[str, RestorationConfig],
    recipe: Recipe,
    needed: float,
    rebuild: Callable[[Overrides], RunPlan],
) -> Advice:
    """Find changes after which the run needs at most `needed` bytes.

    Changes that leave the result as it is come first. They are added until the run fits; then each is
    taken out again if the rest suffices.

    Args:
        plan: of the recipe as it is.
        stages: its checked arguments.
        recipe: it.
        needed: bytes of the GPU.
        rebuild: the plan with some recipe fields changed; may raise UserError.
    """
    fields = _candidates(plan, stages, recipe)
    single = []
    for overrides, effect in fields:
        found = _joined([overrides], rebuild)
        if found is not None and _saves(found[1], plan):
            single.append(Change(overrides, effect, found[1].needed, found[1].seconds))
    chosen: list[Change] = []
    fitting, current = None, plan
    for (
        overrides,
        effect,
    ) in fields:  # what saves nothing by itself may, beside what was chosen before
        joined = _joined([*(other.overrides for other in chosen), overrides], rebuild)
        if joined is None or not _saves(joined[1], current):
            continue
        current = joined[1]
        chosen.append(Change(overrides, effect, current.needed, current.seconds))
        if current.needed <= needed:
            fitting = joined
            break
    if fitting is None:
        return Advice(single, None, current.needed)
    for change in reversed(chosen[:]):  # those that change most about the result first
        rest = [other for other in chosen if other is not change]
        fewer = _fitting(rest, needed, rebuild)
        if fewer is not None:
            chosen, fitting = rest, fewer
    overrides, fits = fitting
    effect = "; ".join(dict.fromkeys(c.effect for c in chosen if c.effect))
    return Advice(single, Change(overrides, effect, fits.needed, fits.seconds), fits.needed)


def _saves(changed: RunPlan, plan: RunPlan) -> bool:
    """Whether some stage needs less: the fullest one may need a change of its own."""
    pairs = zip(changed.stages, plan.stages, strict=True)
    return any(after.room < before.room for after, before in pairs)


def _fitting(
    changes: list[Change], needed: float, rebuild: Callable[[Overrides], RunPlan]
) -> tuple[Overrides, RunPlan] | None:
    found = _joined([change.overrides for change in changes], rebuild)
    return found if found is not None and found[1].needed <= needed else None


def _joined(
    changes: list[Overrides], rebuild: Callable[[Overrides], RunPlan]
) -> tuple[Overrides, RunPlan] | None:
    overrides: Overrides = {}
    for change in changes:
        overrides |= change
    try:
        return overrides, rebuild(overrides)
    except UserError:  # the recipe cannot be changed so
        return None


def _candidates(
    plan: RunPlan, stages: Mapping[str, RestorationConfig], recipe: Recipe
) -> list[tuple[Overrides, str]]:
    """Changes worth a try, those that leave the result as it is first."""
    found: list[tuple[Overrides, str]] = []
    if plan.precision == "float32":
        found.append(({"model.dtype": "bfloat16"}, "half precision"))
    for name, stage in stages.items():
        if len(stage.parts) > 1 and stage.cuda_graphs:
            found.append(({f"stages.{name}.cuda_graphs": "false"}, ""))
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
        if any(part.objective.active_relations for part in stage.all_parts.values()):
            away = {
                f"stages.{name}.gradient_checkpointing": "true",
                f"stages.{name}.offload_teacher": "true",
            }
            found.append((away, "the teacher's relations in host memory"))
    moments = {
        f"stages.{name}.offload_optimizer": "true"
        for name, stage in stages.items()
        if "adamw_torch" in stage.optimizer_name
    }
    if moments:
        found.append((moments, "AdamW's moments in host memory"))
    states = {
        f"stages.{name}.optim": "adamw_bnb_8bit"
        for name, stage in stages.items()
        if "8bit" not in str(stage.optim) and not stage.muon
    }
    if states:
        found.append((states, "optimizer states in 8 bits; needs the package bitsandbytes"))
    model = recipe.model
    if plan.shape.rank and not (model.load_in_4bit or model.gguf_file or names_gguf(model.name)):
        found.append(
            (
                {"model.load_in_4bit": "true"},
                "base weights in 4 bits; needs the package bitsandbytes",
            )
        )
    if plan.shape.dropout:
        found.append(({"adapter.dropout": "0"}, "no dropout"))
    if plan.shape.rank > 16:
        for divisor in (2, 4, 8):
            smaller = {
                "adapter.r": str(plan.shape.rank // divisor),
                "adapter.alpha": f"{recipe.adapter.alpha / divisor:g}",
            }
            found.append((smaller, f"rank {plan.shape.rank // divisor}"))
    return [*found, *_shorter_windows(stages)]


def _shorter_windows(stages: Mapping[str, RestorationConfig]) -> list[tuple[Overrides, str]]:
    """Every window above a half, a quarter, ... of the longest cut to that, for as many tokens in all."""
    parts = [
        (f"stages.{name}.parts.{part}" if part else f"stages.{name}", config)
        for name, stage in stages.items()
        for part, config in stage.all_parts.items()
    ]
    longest, found = max(config.window for _, config in parts), []
    for divisor in (2, 4, 8):
        window, changes = longest // divisor, {}
        for where, config in parts:
            if config.window <= window:
                continue
            changes[f"{where}.window"] = str(window)
            if config.sequences is not None:
                changes[f"{where}.sequences"] = str(config.sequences * config.window // window)
        found.append((changes, f"no windows above {window:,} tokens"))
    return found
