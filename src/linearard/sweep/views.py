"""Measure a run's views; those that no training changes are measured once for the whole sweep."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from linearard.evaluation import EvaluationConfig, EvaluationInputs, evaluate
from linearard.evaluation.context import compare_with_original
from linearard.evaluation.retention import task_results
from linearard.evaluation.tasks import TaskScore
from linearard.model import RestorableModel
from linearard.model.view_names import ORIGINAL, STRETCHED, UNTRAINED
from linearard.storage import write_json
from linearard.sweep.plan import Job

_FORMAT = 2  # raise it when a view's result gains a part


def measure_views(
    restorable: RestorableModel,
    job: Job,
    config: EvaluationConfig,
    documents: list[Tensor],
    inputs: EvaluationInputs,
    shared: Path,
) -> dict[str, Any]:
    """What `evaluate` gives, with the untrained views taken from `shared` where they are known.

    Args:
        restorable: the model of the run, after its training.
        job: the run.
        config: what to measure; `views` limits the views, but never leaves out the one that counts.
        documents: held-out token ids, int64 `[tokens]` each.
        inputs: made from them.
        shared: folder of measured views, which other processes may use at the same time.

    Returns:
        A result with the views in order.
    """

    def measure(names: list[str]) -> dict[str, Any]:
        return evaluate(
            restorable.model,
            restorable.tokenizer,
            restorable.views(),
            documents,
            dataclasses.replace(config, views=names),
            inputs=inputs,
            progress=False,
            native_window=restorable.rope.native_window,
            model_name=restorable.name,
        )

    available = list(restorable.views()) if job.trains else list(UNTRAINED)
    names = [n for n in available if not config.views or n in config.views or n == job.view]
    trained = [name for name in names if name not in UNTRAINED]
    own = measure(trained) if trained else None
    views: dict[str, Any] = {}
    for name in names:
        if name in trained:
            views[name] = own["views"][name]
        else:
            windows = inputs.texts.short, inputs.texts.long
            texts = [*documents, *(text for by_name in windows for text in by_name.values())]
            key = _key(name, restorable, job, config, texts)
            known = _once(shared / f"{name}-{key}.json", lambda name=name: measure([name]))
            views[name] = known["views"][name]
    _compare_with_original(views, config.seed)
    result = own or known
    result["views"] = views
    result["meta"]["config"]["views"] = names
    return result


def _compare_with_original(views: dict[str, Any], seed: int) -> None:
    scores = {
        name: {task: TaskScore.read(part) for task, part in view.get("tasks", {}).items()}
        for name, view in views.items()
    }
    for name, parts in task_results(scores, ORIGINAL, seed).items():
        views[name] |= parts
    compare_with_original(views, seed)


def _once(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result in a file; measured, by one process while the others wait, if it is not there."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            write_json(path, measure())
        return json.loads(path.read_text())


def _key(
    name: str,
    restorable: RestorableModel,
    job: Job,
    config: EvaluationConfig,
    texts: list[Tensor],
) -> str:
    """Hash of all that decides the result of an untrained view."""
    model, data = dataclasses.asdict(job.recipe.model), dataclasses.asdict(job.recipe.data)
    measured = dataclasses.asdict(dataclasses.replace(config, views=[]))
    rope = job.recipe.rope if name == STRETCHED else None
    digest = hashlib.sha256(
        json.dumps(
            [_FORMAT, restorable.fingerprint, model, data, measured, rope], sort_keys=True
        ).encode()
    )
    for text in texts:
        digest.update(text.numpy().tobytes() + b";")
    return digest.hexdigest()[:16]
