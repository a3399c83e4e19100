"""lm-eval's tasks, loaded before the model is: by name, from files of the user's, and RULER's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linearard.errors import DataError, RecipeError, UserError, shown
from linearard.evaluation.config import RULER, RULER_BEGINS, EvaluationConfig
from linearard.evaluation.harness.installed import check_installed


@dataclass(frozen=True)
class HarnessTasks:
    """Tasks with their records.

    Attributes:
        loaded: what `lm_eval.evaluator.evaluate` takes.
        ruler: names of those that are RULER's.
        limit: records of every other task that are asked; None: all.
        chat: whether prompts are conversations in the model's chat template.
    """

    loaded: Mapping[str, Any]
    ruler: frozenset[str]
    limit: int | None
    chat: bool


def harness_tasks(tokenizer: Any, config: EvaluationConfig) -> HarnessTasks | None:
    """Load what `lm_eval` of the configuration names; None where it names nothing.

    Raises:
        RecipeError: lm-eval is not installed, or a task is unknown or runs generated code.
        DataError: its data cannot be read, or a length is too short for RULER.
    """
    if not config.lm_eval:
        return None
    named = [name for name in config.lm_eval if name != RULER]
    check_installed(ruler=RULER in config.lm_eval)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks: dict[str, Any] = _named_tasks(named, config.lm_eval_dir) if named else {}
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise RecipeError(
                expected="tasks of text that run no code which a model wrote",
                got=name,
                fix="Leave it out of evaluation.lm_eval.",
            )
        if config.lm_eval_fewshot is not None:
            task.set_config(key="num_fewshot", value=config.lm_eval_fewshot)
        _finish(task, config.seed)
    of_ruler: Mapping[str, Any] = {}
    if RULER in config.lm_eval:
        lengths = config.ruler_lengths or [RULER_BEGINS]
        docs = ruler_docs_of(tokenizer, lengths, config.ruler_samples, config.ruler_seeds)
        of_ruler = ruler_tasks(docs, chat=config.lm_eval_chat).loaded["tasks"]
    if twice := sorted(tasks.keys() & of_ruler.keys()):
        raise RecipeError(
            expected="every task once",
            got=f"{', '.join(twice)} by name and as part of ruler",
            fix="Correct evaluation.lm_eval.",
        )
    return HarnessTasks(
        _loaded(tasks | dict(of_ruler)),
        frozenset(of_ruler),
        config.lm_eval_limit or None,
        config.lm_eval_chat,
    )


def ruler_docs_of(
    tokenizer: Any, lengths: Sequence[int], samples: int, seeds: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """Records of all six tasks of RULER: task to those of every seed and length; see `ruler_docs`."""
    from linearard.evaluation.harness.ruler import RULER_TASKS, ruler_docs

    return {
        task: [doc for seed in seeds for doc in ruler_docs(task, tokenizer, lengths, samples, seed)]
        for task in RULER_TASKS
    }


def ruler_tasks(docs: Mapping[str, Sequence[Mapping[str, Any]]], *, chat: bool) -> HarnessTasks:
    """lm-eval's tasks of RULER with these records in the place of those that it would make.

    Args:
        docs: task to records, as `ruler_docs_of` gives them.
        chat: as in `HarnessTasks`.
    """
    import lm_eval
    from datasets import Dataset
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks.ruler.common_utils import aggregate_metrics

    from linearard.evaluation.harness.ruler import without_downloads

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(
        include_path=Path(lm_eval.__file__).parent / "tasks" / "ruler", include_defaults=False
    )
    members = []
    for name, records in docs.items():
        lengths = {str(record["max_length"]) for record in records} | {"4096"}
        made = Dataset.from_list([dict(record) for record in records])
        members.append(
            {
                "task": name,
                "custom_dataset": lambda made=made, **kwargs: {"test": made},
                "metric_list": [
                    {"metric": n, "aggregation": aggregate_metrics, "higher_is_better": True}
                    for n in sorted(lengths, key=int)
                ],
            }
        )
    with without_downloads():
        loaded = manager.load([{"group": "linearard_ruler", "task": members}])
    tasks = dict(loaded["tasks"])
    for task in tasks.values():
        _finish(task, 0)
    return HarnessTasks(_loaded(tasks), frozenset(tasks), None, chat)


def _finish(task: Any, seed: int) -> None:
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=seed)


def _loaded(tasks: Mapping[str, Any]) -> dict[str, Any]:
    return {"tasks": tasks, "groups": {}, "group_map": {}}


def _named_tasks(names: Sequence[str], folder: str | None) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    # lm-eval's own list is thousands of files: read only for a name that the folder lacks.
    manager = TaskManager(include_path=folder, include_defaults=False) if folder else None
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folder)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise RecipeError(
            expected="names of tasks that lm-eval has" + (f" or {folder} holds" if folder else ""),
            got=", ".join(unknown),
            fix="`lm-eval ls tasks` lists them; evaluation.lm_eval_dir names a folder of your own.",
        )
    try:
        return dict(manager.load(list(names))["tasks"])
    except UserError:
        raise
    except Exception as error:  # whatever a task's own code and its data set raise
        raise DataError(
            expected=f"tasks of lm-eval whose data can be read: {', '.join(names)}",
            got=f"{type(error).__name__}: {shown(str(error))}",
            fix="Check the task's files; tasks of the hub need a network or a filled cache.",
        ) from error
