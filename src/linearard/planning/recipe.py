"""From a recipe to its plan: which device, which precision, which rates, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from linearard.counting.shapes import ModelShape
from linearard.errors import ModelError
from linearard.model import check_supported, load_config, resolve_device, resolve_dtype
from linearard.planning.advice import Advice, Overrides, advise
from linearard.planning.rates import Rates, shipped_rates, stored_rates
from linearard.planning.run_plan import RunPlan, plan_run
from linearard.planning.several import Layout, SeveralPlan, choose_layout, plan_several
from linearard.rope import check_scaling, native_window

if TYPE_CHECKING:
    from linearard.recipe import Recipe, RestorationConfig

_StageArguments = Callable[..., "dict[str, RestorationConfig]"]


@dataclass(frozen=True)
class PlannedRecipe:
    """A plan, and how it was made.

    Attributes:
        plan: the run.
        rates: what times were counted with; None: none were.
        limit: bytes of the GPU; None: not known.
        advice: what to change, where the run does not fit.
    """

    plan: RunPlan
    rates: Rates | None
    limit: float | None
    advice: Advice | None
    stages: Mapping[str, RestorationConfig] = field(default_factory=dict, repr=False)
    native_window: int = 0

    def on_several(self, gpus: int, nodes: int) -> list[SeveralPlan]:
        """The same run on several GPUs: by copies of the model, by shares of it, and of windows where needed.

        Args:
            gpus: of a node.
            nodes: of as many GPUs each.
        """
        options = {"native_window": self.native_window}
        layouts = [Layout(gpus * nodes, nodes, sharded) for sharded in (False, True)]
        found = [plan_several(self.plan, self.stages, layout, **options) for layout in layouts]
        if self.limit is not None and all(plan.memory > self.limit for plan in found):
            several = (self.plan, self.stages, gpus * nodes, nodes, self.limit)
            if (fitting := choose_layout(*several, **options)) is not None:
                found.append(fitting)
        return found

    @property
    def fits(self) -> bool | None:
        """Whether the run fits; None: no limit is known."""
        return None if self.limit is None else self.plan.needed <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; sizes in bytes, times in seconds."""
        rates = self.rates
        return self.plan.to_dict() | {
            "rates": None if rates is None else {"device": rates.device, "source": rates.source},
            "gpu_bytes": self.limit,
            "fits": self.fits,
            "excess_bytes": None if self.limit is None else max(0.0, self.plan.needed - self.limit),
            "advice": None if self.advice is None else asdict(self.advice),
        }


def planned_recipe(
    load: Callable[[Overrides], Recipe],
    stage_arguments: _StageArguments,
    limit: float | None,
    config: Any = None,
) -> PlannedRecipe:
    """Plan a recipe for the device it would run on; without a GPU here, for one.

    Args:
        load: the recipe with further overrides.
        stage_arguments: `train.stages.stage_arguments`.
        limit: bytes of the GPU; None: those of the GPU here, if there is one.
        config: of the model, where a caller has read it.

    Raises:
        UserError: whatever `linearard train` would refuse in the recipe before it loads weights.
    """
    recipe = load({})
    try:
        config = load_config(recipe.model) if config is None else config
    except ModelError as error:
        enough = "A folder with the model's config.json is enough for a plan."
        raise error.reworded(fix=f"{error.fix} {enough}") from None
    check_supported(config, recipe.rope, recipe.adapter)
    on_cpu = recipe.model.device == "cpu"
    here = torch.cuda.is_available() and not on_cpu
    rates = _rates(recipe, on_cpu, here)
    if limit is None and here:
        device = resolve_device(recipe.model.device)
        limit = float(torch.cuda.get_device_properties(device).total_memory)
    shapes: dict[str, ModelShape] = {}

    def checked(overrides: Overrides) -> tuple[Recipe, dict[str, RestorationConfig], str]:
        changed = load(overrides)
        dtype = _dtype(changed, on_cpu, here)
        # On another machine the arguments must suit this one: the CPU knows no float16.
        arguments_dtype = torch.bfloat16 if dtype == torch.float16 else dtype
        device = resolve_device(changed.model.device) if here else torch.device("cpu")
        stages = stage_arguments(
            changed, config, device, dtype if here else arguments_dtype, progress=False
        )
        return changed, stages, dtype

    def build(overrides: Overrides) -> RunPlan:
        changed, stages, dtype = checked(overrides)
        adapter = changed.adapter
        of_lora = {"r": recipe.adapter.r, "dropout": 0.0} if adapter.kind == "lora" else {}
        key = repr(replace(adapter, **of_lora, alpha=1.0))
        if key not in shapes:
            shapes[key] = ModelShape.of(config, adapter)
        shape = shapes[key]
        return plan_run(
            shape.with_lora(adapter.r, adapter.dropout) if of_lora else shape,
            stages,
            native_window=native_window(config, check_scaling(changed.rope, config)),
            mixed=dtype != torch.float32,
            fused=not on_cpu,
            rates=rates,
            records=not on_cpu and dtype != torch.float16,
            packed=changed.model.load_in_4bit,
        )

    plan, advice = build({}), None
    if limit is not None and plan.needed > limit:
        advice = advise(plan, checked({})[1], recipe, limit, build)
    native = native_window(config, check_scaling(recipe.rope, config))
    return PlannedRecipe(plan, rates, limit, advice, checked({})[1], native)


def _dtype(recipe: Recipe, on_cpu: bool, here: bool) -> torch.dtype:
    if on_cpu or here:
        return resolve_dtype(recipe.model.dtype, resolve_device(recipe.model.device))
    return torch.bfloat16 if recipe.model.dtype == "auto" else getattr(torch, recipe.model.dtype)


def _rates(recipe: Recipe, on_cpu: bool, here: bool) -> Rates | None:
    if on_cpu:
        return stored_rates("cpu")
    if here:
        device = resolve_device(recipe.model.device)
        name = torch.cuda.get_device_name(device)
        own = stored_rates(name)
        shipped = shipped_rates()
        return own or (shipped if shipped.device == name else None)
    return shipped_rates()
