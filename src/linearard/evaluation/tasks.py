"""Scores on short-text benchmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linearard.errors import DataError
from linearard.evaluation.batching import Track
from linearard.evaluation.continuations import Continuation, Encoder, score_continuations
from linearard.evaluation.statistics import bootstrap_interval, mean, perplexity
from linearard.evaluation.task_files import Record
from linearard.model import ChunkedCausalLM

_FURTHER = ("acc", "acc_norm", "perplexity")


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
        logprobs: of each record, the log-probability in nats of every choice, or of the one target; to
            1e-4, so that a file can hold them.
        chosen: of each record, which choice the headline metric takes; for a last word, which has
            one target, 0 where the model finds it and -1 where it does not.
        chance: the headline score of guessing.
        further: scores under other metrics.
    """

    metric: str
    hits: list[float]
    logprobs: list[list[float]]
    chosen: list[int]
    chance: float
    further: dict[str, float]

    def describe(self, seed: int) -> dict[str, Any]:
        """`metric`, `score`, `ci95` (bootstrap), `chance`, `records`, the further scores, and `answers`.

        `answers` holds `hits`, `logprobs` and `chosen` of all records: `read` takes them back.
        """
        return {
            "metric": self.metric,
            "score": mean(self.hits),
            "ci95": bootstrap_interval(self.hits, seed),
            "chance": self.chance,
            "records": len(self.hits),
            **self.further,
            "answers": {"hits": self.hits, "logprobs": self.logprobs, "chosen": self.chosen},
        }

    @classmethod
    def read(cls, part: Mapping[str, Any]) -> TaskScore:
        """The score that `describe` gave, from JSON; further entries of `part` are left aside."""
        hits, logprobs, chosen = (part["answers"][name] for name in ("hits", "logprobs", "chosen"))
        # JSON has null for what was not a number.
        finite = [[math.nan if value is None else value for value in record] for record in logprobs]
        further = {name: part[name] for name in _FURTHER if name in part}
        return cls(part["metric"], hits, finite, chosen, part["chance"], further)


def encode_task(encode: Encoder, records: Sequence[Record]) -> Task:
    """Tokenize the prompts of a task.

    Raises:
        DataError: a context has no token before the scored ones.
    """
    prompts = [(record, pair) for record in records for pair in record.prompts]
    continuations = encode.continuations(pair for _, pair in prompts)
    for (record, (context, _)), continuation in zip(prompts, continuations, strict=True):
        if continuation.start < 1:
            raise DataError(
                expected=f"a context of at least one token in {record.where}",
                got=repr(context),
                fix="Give the record a context.",
            )
    return Task(records, continuations)


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
    logprobs = [[score.logprob for score in record] for record in grouped]
    rounded = [[round(logprob, 4) for logprob in record] for record in logprobs]
    if records[0].answer is None:
        found = [score.greedy for (score,) in grouped]
        accuracy = [float(greedy) for greedy in found]
        extra = {"perplexity": perplexity(-mean([logprob for (logprob,) in logprobs]))}
        further = {"acc": mean(accuracy), **extra}
        return TaskScore("acc", accuracy, rounded, [int(g) - 1 for g in found], 0.0, further)

    chosen = {"acc": _plain(logprobs), "acc_norm": _normalised(records, logprobs)}
    hits = {name: _hits(records, choices) for name, choices in chosen.items()}
    metric = "acc" if records[0].partial or _labels(records) else "acc_norm"
    chance = mean([1 / len(record.prompts) for record in records])
    further = {name: mean(values) for name, values in hits.items()}
    return TaskScore(metric, hits[metric], rounded, chosen[metric], chance, further)


def _plain(logprobs: list[list[float]]) -> list[int]:
    """Of each record, the choice of the highest log-probability."""
    return [record.index(max(record)) for record in logprobs]


def _normalised(records: Sequence[Record], logprobs: list[list[float]]) -> list[int]:
    """Of each record, the choice of the highest log-probability per character of the continuation."""
    pairs = zip(records, logprobs, strict=True)
    return _plain(
        [[t / len(text) for t, (_, text) in zip(ts, r.prompts, strict=True)] for r, ts in pairs]
    )


def _hits(records: Sequence[Record], chosen: list[int]) -> list[float]:
    return [float(c == record.answer) for c, record in zip(chosen, records, strict=True)]


def _labels(records: Sequence[Record]) -> bool:
    choices = {tuple(text for _, text in record.prompts) for record in records}
    return len(records) > 1 and len(choices) == 1
