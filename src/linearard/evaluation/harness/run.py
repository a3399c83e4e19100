"""Ask the model, in the view as it is now, and take lm-eval's values record by record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linearard.evaluation.harness.tasks import HarnessTasks

#: The measure that a task is known by, the first that it has.
_HEADLINES = ("acc_norm", "exact_match", "acc", "f1", "em")


@dataclass(frozen=True)
class HarnessScore:
    """What one view got in one task.

    Attributes:
        metric: the headline measure, with lm-eval's name.
        values: of each record under it, in the order of the records.
        further: means under all measures, `NAME` or `NAME,FILTER`.
        lengths: of each record of RULER, the tokens that it was made for; of others none.
        seeds: the same of its seed.
    """

    metric: str
    values: list[float]
    further: dict[str, float]
    lengths: list[int]
    seeds: list[int]


def ask(model: Any, tasks: HarnessTasks) -> dict[str, HarnessScore]:
    """Score every task; name to score.

    Args:
        model: a `HarnessModel`.
        tasks: what to ask.
    """
    from lm_eval.evaluator import evaluate

    scores: dict[str, HarnessScore] = {}
    for of_ruler in (False, True):  # limits hold for the tasks of others
        chosen = {
            name: task
            for name, task in tasks.loaded["tasks"].items()
            if (name in tasks.ruler) is of_ruler
        }
        if not chosen:
            continue
        with _without_bars():
            found = evaluate(
                lm=model,
                task_dict={**tasks.loaded, "tasks": chosen},
                limit=None if of_ruler else tasks.limit,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=tasks.chat,
                fewshot_as_multiturn=tasks.chat,
            )
        for name in chosen:
            read = _read_ruler if of_ruler else _read
            scores[name] = read(found["samples"][name], found["results"][name])
    return {name: scores[name] for name in tasks.loaded["tasks"]}


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """lm-eval shows a bar for every task that it puts into requests; ours are of the work itself."""
    from lm_eval.api import task

    before = task.tqdm
    task.tqdm = lambda steps, **kwargs: steps
    try:
        yield
    finally:
        task.tqdm = before


def _read_ruler(samples: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> HarnessScore:
    lengths = [int(sample["doc"]["max_length"]) for sample in samples]
    values = [float(sample[str(n)]) for sample, n in zip(samples, lengths, strict=True)]
    seeds = [int(sample["doc"]["seed"]) for sample in samples]
    return HarnessScore("string_match_all", values, {}, lengths, seeds)


def _read(samples: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> HarnessScore:
    """The headline is one that has a number for every record; a task may have none, such as BLEU."""
    first_filter = samples[0]["filter"]
    own = sorted(
        (s for s in samples if s["filter"] == first_filter), key=lambda sample: sample["doc_id"]
    )
    plain = [name for name in own[0]["metrics"] if all(_is_number(s[name]) for s in own)]
    further = {
        name.removesuffix(",none"): float(value)
        for name, value in results.items()
        if _is_number(value) and "," in name and "_stderr" not in name
    }
    metric = next((name for name in _HEADLINES if name in plain), plain[0] if plain else "")
    return HarnessScore(metric, [float(s[metric]) for s in own] if metric else [], further, [], [])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)  # truth values count as 0 and 1
