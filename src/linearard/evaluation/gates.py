"""Limits that a result must reach, for use in a build: named measures of the restored model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linearard.errors import RecipeError
from linearard.evaluation.config import EvaluationConfig
from linearard.evaluation.statistics import mean
from linearard.model.view_names import ORIGINAL, RESTORED


@dataclass(frozen=True)
class Gate:
    """A measure, higher being better, and the least that it may be."""

    name: str
    least: float


@dataclass(frozen=True)
class _Measure:
    """What a name stands for.

    Attributes:
        label: of the row, in words.
        measured: whether an evaluation of this configuration will have it.
        read: it, out of the restored view's part of a result; None where it has no value.
    """

    label: str
    measured: Callable[[EvaluationConfig], bool]
    read: Callable[[Mapping[str, Any]], float | None]


def _worst(section: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda view: min(part["accuracy"] for part in view[section]["by_length"].values())


def _harness_kept(view: Mapping[str, Any]) -> float | None:
    kept = [part["raw_retention"] for part in view["lm_eval"].values()]
    return None if None in kept else mean(kept)


_MEASURES = {
    "top1": _Measure(
        "top-1 agreement", lambda c: c.agreement_window > 0, lambda view: view["agreement"]["top1"]
    ),
    "tasks_kept": _Measure(
        "task average / original's",
        lambda c: c.tasks_dir is not None,
        lambda view: view["task_average"]["raw_retention"],
    ),
    "same_answers": _Measure(
        "answers as the original's",
        lambda c: c.tasks_dir is not None,
        lambda view: view["task_average"]["same_answers"],
    ),
    "lm_eval_kept": _Measure(
        "tasks of lm-eval / original's, mean", lambda c: bool(_of_harness(c)), _harness_kept
    ),
    "passkey": _Measure(
        "pass key, worst length", lambda c: bool(c.passkey_lengths), _worst("passkey")
    ),
    "retrieval": _Measure(
        "retrieval, worst length", lambda c: bool(c.retrieval_lengths), _worst("retrieval")
    ),
    "ruler": _Measure("RULER, worst length", lambda c: "ruler" in c.lm_eval, _worst("ruler")),
    "ruler_kept": _Measure(
        "RULER / original's",
        lambda c: "ruler" in c.lm_eval,
        lambda view: view["ruler"]["raw_retention"],
    ),
}


def read_gates(words: Sequence[str]) -> list[Gate]:
    """Gates of `NAME=VALUE`, several of them in one word with commas between.

    Raises:
        RecipeError: another form, or a value that no share can have.
    """
    gates = []
    for word in ",".join(words).split(",") if words else ():
        name, _, value = word.strip().partition("=")
        try:
            least = float(value)
        except ValueError:
            least = -1.0
        if not name or not 0 <= least < 100:
            raise RecipeError(
                expected="--fail-below NAME=VALUE with a share, such as tasks_kept=.98",
                got=repr(word),
                fix=f"Names: {', '.join(_MEASURES)}, or that of a task.",
            )
        gates.append(Gate(name, least))
    return gates


def check_gates(gates: Sequence[Gate], config: EvaluationConfig, tasks: Sequence[str]) -> None:
    """Refuse a gate on what will not be measured, before anything is.

    Args:
        gates: to be checked.
        config: of the evaluation.
        tasks: names of the task files and of lm-eval's tasks that it has.

    Raises:
        RecipeError: an unknown name, a measure that is off, or views without original and restored.
    """
    if gates and config.views and not {ORIGINAL, RESTORED} <= set(config.views):
        raise RecipeError(
            expected=f"--fail-below with the views {ORIGINAL} and {RESTORED}",
            got=f"evaluation.views: {', '.join(config.views)}",
            fix="Leave evaluation.views out.",
        )
    for gate in gates:
        measure = _MEASURES.get(gate.name)
        if measure is None and gate.name not in tasks:
            raise RecipeError(
                expected="a name that --fail-below knows, or that of a task",
                got=gate.name,
                fix=f"Names: {', '.join([*_MEASURES, *tasks])}.",
            )
        if measure is not None and not measure.measured(config):
            raise RecipeError(
                expected=f"an evaluation that measures {measure.label}, for --fail-below {gate.name}",
                got="one in which it is off",
                fix="Switch it on in the recipe's section evaluation, or leave the gate out.",
            )


def failed_gates(gates: Sequence[Gate], result: Mapping[str, Any]) -> list[str]:
    """A line for every gate that the restored model does not reach; one without a value does not.

    Args:
        gates: checked ones.
        result: what `evaluate` returned.
    """
    view = result["views"][RESTORED]
    lines = []
    for gate in gates:
        measure = _MEASURES.get(gate.name)
        value = measure.read(view) if measure else _task(gate.name, view)
        if value is None or value < gate.least:
            label = measure.label if measure else gate.name
            said = "no value" if value is None else f"{value:.4g}"
            lines.append(f"{gate.name} ({label}): {said}, below {gate.least:g}")
    return lines


def _task(name: str, view: Mapping[str, Any]) -> float:
    own, theirs = view.get("tasks", {}), view.get("lm_eval", {})
    of_ruler = view.get("ruler", {}).get("tasks", {})
    if name in of_ruler:
        return of_ruler[name]["accuracy"]
    return (own if name in own else theirs)[name]["score"]


def _of_harness(config: EvaluationConfig) -> list[str]:
    return [name for name in config.lm_eval if name != "ruler"]
