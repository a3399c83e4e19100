"""What a run tells its trackers: its recipe, its losses on one axis of steps, its evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from linearard.errors import RecipeError, UserError
from linearard.evaluation import summarise
from linearard.model import resolve_device
from linearard.processes import is_main_process
from linearard.recipe import Recipe
from linearard.recipe.trackers import check_trackers


class Trackers:
    """The trackers of a run, from its beginning to the end of its evaluation; a context manager.

    They are spoken to by the callbacks that transformers has for them, of which there is one set for all
    stages: the first step of a stage follows the last one of the stage before. In a process that does not
    speak for the run there are none.

    Args:
        recipe: names them in `report_to`, and is what they are told first.
        folder: of the run, which is named after it. TensorBoard's files are in `runs` within.

    Raises:
        RecipeError: on entry: a tracker has no package here, or cannot begin.
    """

    def __init__(self, recipe: Recipe, folder: str | Path) -> None:
        self._recipe, self._folder = recipe, Path(folder)
        self._names = recipe.report_to if is_main_process() else []
        self._callbacks: dict[str, TrainerCallback] = {}
        self._arguments: TrainingArguments | None = None
        self._wandb: Any = None  # the module, where this run has begun its run
        self._before = 0  # steps of the stages that have ended

    def __enter__(self) -> Trackers:
        from transformers.integrations import get_reporting_integration_callbacks

        check_trackers(self._names)
        if self._names:
            device = resolve_device(self._recipe.model.device)
            self._arguments = _RunArguments(
                output_dir=str(self._folder.absolute()),
                run_name=str(self._folder),
                report_to="none",
                use_cpu=device.type == "cpu",
            )
            self._arguments.recipe = self._recipe.source  # type: ignore[attr-defined]
        for name in self._names:
            try:
                (kind,) = get_reporting_integration_callbacks(name)
                self._callbacks[name] = kind()
                self._begin(name)
            except Exception as error:  # the tracker's own
                self.__exit__(type(error))
                raise _cannot_begin(name, error) from error
        return self

    def _begin(self, name: str) -> None:
        if name == "wandb":
            import wandb

            self._wandb = wandb if wandb.run is None else None  # else it is the caller's to end
        for moment in ("on_init_end", "on_train_begin"):
            self._tell(name, moment, 0)

    def __exit__(self, kind: type[BaseException] | None, *reason: Any) -> None:
        for name in self._callbacks:
            if name != "wandb":  # which would save a model here, if its own settings say so
                self._tell(name, "on_train_end", 0)
        self._callbacks = {}
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)

    def of_stage(self) -> list[TrainerCallback]:
        """What a stage's trainer has to call so that its log arrives here."""
        return [_StageLog(self)] if self._callbacks else []

    def stage_ended(self, steps: int) -> None:
        """Count the steps of a stage, trained now or before a resume."""
        self._before += steps

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Hand values by name to all trackers, at a step of the present stage."""
        for name in self._callbacks:
            self._tell(name, "on_log", step, logs=dict(values))

    def evaluated(self, result: Mapping[str, Any]) -> None:
        """Hand them every row of an evaluation, as `eval/GROUP/ROW/VIEW`, and what was recovered.

        Args:
            result: of `evaluate`.
        """
        values = {}
        for row in summarise(result):
            name = f"eval_{_plain(row.group)}/{_plain(row.label)}"
            values |= {f"{name}/{_plain(view)}": value for view, value in row.values.items()}
            if row.recovered is not None:
                values[f"{name}/recovered"] = row.recovered
        self.log(0, values)

    def _tell(self, name: str, moment: str, step: int, **more: Any) -> None:
        state = TrainerState(
            global_step=self._before + step, is_world_process_zero=True, is_local_process_zero=True
        )
        getattr(self._callbacks[name], moment)(
            self._arguments, state, TrainerControl(), model=None, **more
        )


class _RunArguments(TrainingArguments):
    """What the trackers of transformers take for a stage's arguments: here the whole recipe."""

    recipe: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The complete recipe, RoPE and every stage included."""
        return dict(self.recipe)


class _StageLog(TrainerCallback):
    """Hands on what a stage logs."""

    def __init__(self, trackers: Trackers) -> None:
        self._trackers = trackers

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **kwargs: Any
    ) -> None:
        """A step, or the end of the stage."""
        self._trackers.log(state.global_step, logs)


def _plain(text: str) -> str:
    """A name that every tracker takes: letters, digits and underscores."""
    return re.sub(r"[^\w.-]+", "_", text).strip("_")


def _cannot_begin(name: str, error: Exception) -> UserError:
    words = " ".join(str(error).split())[:300].rstrip(".")
    way = " (`wandb login`, or WANDB_MODE=offline)" if name == "wandb" else ""
    return RecipeError(
        expected=f"a tracker that can begin, for report_to: {name}",
        got=f"{type(error).__name__}: {words}",
        fix=f"Set it up{way}, or leave report_to out.",
    )
