"""Is the restored model better than the stretched one? Row by row, and in one screen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from linearard.evaluation import Row, summarise
from linearard.evaluation.table import format_value
from linearard.model.view_names import ORIGINAL, RESTORED, STRETCHED

#: Differences that windows of the same text explain, where both models read the same: nats of a loss, and
#: shares of KL and of agreement.
_ALIKE = "answers"
_LOSS, _KL_SHARE, _KL_NATS, _AGREEMENT = 0.01, 0.02, 2e-4, 0.002


@dataclass(frozen=True)
class Verdict:
    """What a restoration has given.

    Attributes:
        worse: labels of the rows in which restored is worse than stretched beyond what chance explains.
        better: labels of those in which it is better by as much.
        lines: the verdict in words.
    """

    worse: list[str]
    better: list[str]
    lines: list[str]

    @property
    def good(self) -> bool:
        """Whether something was gained and nothing lost."""
        return bool(self.better) and not self.worse


def judge(result: Mapping[str, Any]) -> Verdict:
    """The verdict on a result of `evaluate` with the views original, stretched and restored."""
    rows = [row for row in summarise(result) if {STRETCHED, RESTORED} <= row.values.keys()]
    worse = [row.label for row in rows if _beyond(row, RESTORED, STRETCHED)]
    better = [row.label for row in rows if _beyond(row, STRETCHED, RESTORED)]
    return Verdict(worse, better, _lines(rows, worse, better))


def _beyond(row: Row, view: str, other: str) -> bool:
    """Whether `view` is worse than `other` in a row, by more than chance explains."""
    if row.kind in ("rate", "ratio") or (row.group == "tasks" and _ALIKE in row.label):
        return False  # of free generation, of what another row has, of answers that may differ and be right
    mine, its = row.values[view], row.values[other]
    if row.kind == "gain":
        return False  # within one view; what it is worth stands in the loss
    if not math.isfinite(mine):  # no result of a model that works
        return view == RESTORED or math.isfinite(its)
    if not math.isfinite(its):
        return False
    if row.kind == "loss":
        return mine > its + _LOSS
    if row.kind == "perplexity":  # the same tokens, read by both
        return math.log(mine) > math.log(its) + _LOSS
    if row.kind == "kl":
        return mine > its * (1 + _KL_SHARE) + _KL_NATS
    if row.group == "held-out text":  # top-1 agreement, on the same tokens
        return mine < its - _AGREEMENT
    interval = row.intervals.get(other)
    return mine < (interval[0] if interval else its)


def _lines(rows: list[Row], worse: list[str], better: list[str]) -> list[str]:
    lines = []
    short = [row for row in rows if row.kind == "kl" or row.label == "task average"]
    short += [row for row in rows if row.label == "top-1 agreement"]
    lines += [f"near the original: {_shown(row)}" for row in short[:3]]
    lines += [f"reads: {_shown(row)}" for row in rows if row.kind == "perplexity"][-2:]
    found = [row for row in rows if row.label.startswith(("pass key", "retrieval"))]
    lines += [f"finds: {_shown(row)}" for row in found]
    unlike = [row for row in rows if _ALIKE in row.label]
    lines += [f"for comparison: {_shown(row)}" for row in unlike]
    if worse:
        lines.append(f"WORSE than the stretched model in: {', '.join(worse)}.")
    elif better:
        lines.append(f"Better than the stretched model in {len(better)} rows, worse in none.")
    else:
        lines.append(
            "NOT BETTER than the stretched model in any row (differences below "
            f"{_KL_NATS:g} nats of KL, {_LOSS:g} nats of a loss or {_AGREEMENT:g} of agreement count as "
            "none). Where stretching does little damage, little can be given back; --tokens trains longer."
        )
    return lines


def _shown(row: Row) -> str:
    values = [f"{view} {format_value(row, view)}" for view in (ORIGINAL, STRETCHED, RESTORED)]
    return f"{row.label}: {', '.join(values)}"
