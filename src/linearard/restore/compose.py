"""From facts to a complete recipe, every choice with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linearard.data.config import PYDOC, SELF
from linearard.restore.choice import Choice
from linearard.restore.facts import Facts
from linearard.restore.measures import choose_measures
from linearard.restore.request import RestoreRequest
from linearard.restore.scaling import choose_scaling
from linearard.restore.stages import build_stages, choose_sizes
from linearard.restore.training import alignment_rate, choose_adapter, choose_optimizer

#: A rate that has to be halved often costs trials beyond those planned: all together stay below 4.25 million.
_TOKENS_ON_GPU, _TOKENS_ON_CPU = 4_000_000, 49_152


@dataclass(frozen=True)
class Composed:
    """A recipe and why it is as it is.

    Attributes:
        source: the recipe as plain data.
        choices: in the order in which a reader wants them.
    """

    source: dict[str, Any]
    choices: list[Choice]


def compose(
    request: RestoreRequest, facts: Facts, model: dict[str, Any], tasks: str | None = None
) -> Composed:
    """Decide everything that can be decided without weights.

    Args:
        request: what was asked for.
        facts: of model, text and machine.
        model: the section `model` of the recipe.
        tasks: folder of task files for the evaluation, or None.
    """
    rope, scaling = choose_scaling(facts, request.scaling, request.native_window is not None)
    adapter, trained = choose_adapter(facts, request.adapter, request.scaling)
    optimizer, rate = choose_optimizer(facts, adapter)
    tokens = request.tokens or (_TOKENS_ON_CPU if facts.on_cpu else _TOKENS_ON_GPU)
    sizes, windows = choose_sizes(facts, tokens)
    evaluation, measured = choose_measures(facts, tasks)
    data: dict[str, Any] = {"train": request.data or SELF}
    if facts.fraction is not None:
        data["validation_fraction"] = facts.fraction
    elif request.validation is not None or facts.held_out is None:
        data["validation"] = request.validation or PYDOC
    if request.data is None and facts.self_start is not None:
        data["self_start"] = facts.self_start
    source = {
        "model": model,
        "rope": rope,
        "adapter": adapter,
        "data": data,
        "stages": build_stages(facts, sizes, optimizer, alignment_rate(facts, adapter)),
        "evaluation": evaluation,
        "output_dir": str(request.output),
        "seed": request.seed,
        "target_window": facts.target,
    }
    text = [] if request.data is None else [_text(request.data)]
    return Composed(source, [scaling, trained, rate, *text, *windows, _held_out(facts), *measured])


def _text(data: str) -> Choice:
    if data == PYDOC:
        reason = "as given, or because none was: on a CPU a model would write for hours"
        return Choice("training text", "the documentation of the installed Python", reason)
    return Choice("training text", data, "--data")


def _held_out(facts: Facts) -> Choice:
    if facts.fraction is not None:
        reason = "no --validation was given; documents are chosen by a hash of their text"
        return Choice("held-out text", f"{facts.fraction:.0%} of the documents", reason)
    if facts.held_out is None:
        reason = "--data has no document to spare" if facts.supply else "no text was given"
        return Choice("held-out text", "the documentation of the installed Python", reason)
    return Choice("held-out text", "as given", "--validation, or the data set's own split")
