"""Scores on short-text benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from linearard.errors import DataError
from linearard.evaluation.batching import Track
from linearard.evaluation.continuations import (
    Continuation,
    Encoder,
    Score,
    score_continuations,
)
from linearard.evaluation.statistics import bootstrap_interval, mean, perplexity
from linearard.evaluation.task_files import Record
from linearard.model import ChunkedCausalLM


@dataclass(frozen=True)
class Task:
    """Records and, in their order, the continuations of all their prompts."""

    records: Sequence[Record]
    continuations: Sequence[Continuation]


@dataclass(frozen=True)
class TaskScore:
    """How one view did on one task.

    Attributes:
        metric: name of the headline metric.
        hits: 1.0 or 0.0 of each record under that metric, in the order of the records.
        chance: the headline score of guessing.
        further: scores under other metrics.
    """

    metric: str
    hits: list[float]
    chance: float
    further: dict[str, float]

    def describe(self, seed: int) -> dict[str, Any]:
        """`metric`, `score`, `ci95` (bootstrap), `chance`, `records` and the further scores."""
        return {
            "metric": self.metric,
            "score": mean(self.hits),
            "ci95": bootstrap_interval(self.hits, seed),
            "chance": self.chance,
            "records": len(self.hits),
            **self.further,
        }


def encode_task(encode: Encoder, records: Sequence[Record]) -> Task:
    """Tokenize the prompts of a task.

    Raises:
        DataError: a context has no token before the scored ones.
    """
    return Task(
        records,
        [_continuation(encode, *pair, record) for record in records for pair in record.prompts],
    )


def score_task(
    lm: ChunkedCausalLM, task: Task, *, batch_size: int, track: Track = iter
) -> TaskScore:
    """Score the records of one task with the model as it is now.

    Multiple choice: `acc` takes the choice of the highest log-probability, `acc_norm` the one of
    the highest log-probability per character. The headline is `acc_norm`, except where the
    choices are labels (the same in every record, such as yes and no) or one continuation after
    several contexts: there it is `acc`.

    Last word: `acc` is the share of targets that are the model's greedy choice in every token,
    `perplexity` is exp(-mean log-probability of a target).

    Returns:
        Hits under the headline metric; further scores are `acc`, and `acc_norm` or `perplexity`.
    """
    records = task.records
    scores = iter(score_continuations(lm, task.continuations, batch_size=batch_size, track=track))
    grouped = [[next(scores) for _ in record.prompts] for record in records]
    if records[0].answer is None:
        accuracy = [float(score.greedy) for (score,) in grouped]
        extra = {"perplexity": perplexity(-mean([score.logprob for (score,) in grouped]))}
        return TaskScore("acc", accuracy, 0.0, {"acc": mean(accuracy), **extra})

    plain, normalised = _choice_hits(records, grouped)
    metric = "acc" if records[0].partial or _labels(records) else "acc_norm"
    chance = mean([1 / len(record.prompts) for record in records])
    both = {"acc": mean(plain), "acc_norm": mean(normalised)}
    return TaskScore(metric, plain if metric == "acc" else normalised, chance, both)


def _continuation(encode: Encoder, context: str, text: str, record: Record) -> Continuation:
    continuation = encode.continuation(context, text)
    if continuation.start < 1:
        raise DataError(
            expected=f"a context of at least one token in {record.where}",
            got=repr(context),
            fix="Give the record a context.",
        )
    return continuation


def _choice_hits(
    records: Sequence[Record], grouped: list[list[Score]]
) -> tuple[list[float], list[float]]:
    """Of each record, whether the answer wins: plain, and per character of the continuation."""
    plain, normalised = [], []
    for record, scores in zip(records, grouped, strict=True):
        total = [score.logprob for score in scores]
        each = [t / len(text) for t, (_, text) in zip(total, record.prompts, strict=True)]
        plain.append(float(total.index(max(total)) == record.answer))
        normalised.append(float(each.index(max(each)) == record.answer))
    return plain, normalised


def _labels(records: Sequence[Record]) -> bool:
    choices = {tuple(text for _, text in record.prompts) for record in records}
    return len(records) > 1 and len(choices) == 1
