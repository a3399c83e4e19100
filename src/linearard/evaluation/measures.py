"""Metrics that each view of a model gives by itself: what one reads, how it is measured and told.

Inputs, evaluation and summary iterate `MEASURES`. A new metric is a class here, and its budget a field of
`EvaluationConfig` (docs/how-to/extending.md). Agreement compares views, and tasks are compared record by
record: both stand in files of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from linearard.data import Documents
from linearard.evaluation.batching import Track
from linearard.evaluation.config import EvaluationConfig
from linearard.evaluation.context import context_losses, context_windows
from linearard.evaluation.generation import generation_prompts, score_generation
from linearard.evaluation.passkey import passkey_prompts
from linearard.evaluation.perplexity import window_perplexity
from linearard.evaluation.prompts import Prompt, score_prompts
from linearard.evaluation.retrieval import retrieval_prompts, score_retrieval
from linearard.evaluation.windows import cut_windows
from linearard.model import ChunkedCausalLM
from linearard.model.view_names import ORIGINAL

if TYPE_CHECKING:
    from linearard.evaluation.summary import Rows

HELD_OUT, RETRIEVAL = "held-out text", "retrieval"  # groups of rows
Views = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Measuring:
    """The model in one view, while it is measured.

    Attributes:
        lm: the model.
        config: sizes, budgets and the seed.
        view: its name.
        native_window: tokens that the original reads.
        track: what is done, in words -> what wraps the batches to show progress.
    """

    lm: ChunkedCausalLM
    config: EvaluationConfig
    view: str
    native_window: int
    track: Callable[[str], Track]

    def options(self, what: str) -> dict[str, Any]:
        """Batch size, seed and progress, as most metrics take them."""
        config = self.config
        return {"batch_size": config.batch_size, "seed": config.seed, "track": self.track(what)}


class Measure(ABC):
    """One metric.

    Attributes:
        name: of its part in the result of a view.
        group: of its rows, what they have in common.
    """

    name: ClassVar[str]
    group: ClassVar[str]

    @abstractmethod
    def prepare(self, config: EvaluationConfig, tokenizer: Any, documents: Documents) -> Any:
        """All that it reads, found good before anything is computed; None or empty: it is off.

        Args:
            config: what to measure.
            tokenizer: of the model.
            documents: held-out token ids, int64 [tokens] each.

        Raises:
            DataError: the documents or a length are too short.
        """

    @abstractmethod
    def score(self, prepared: Any, measuring: Measuring) -> dict[str, Any]:
        """Its part of the view's result, of what `json.dump` takes."""

    @abstractmethod
    def rows(self, rows: Rows, views: Views) -> None:
        """Add its rows to a comparison; none where the results have no such part."""


class Perplexity(Measure):
    """Perplexity by size of the window."""

    name, group = "perplexity", HELD_OUT

    def prepare(
        self, config: EvaluationConfig, tokenizer: Any, documents: Documents
    ) -> dict[int, Tensor]:
        """See `Measure`."""
        sizes, tokens = config.perplexity_windows, config.perplexity_tokens
        return {window: cut_windows(documents, window, tokens) for window in sizes}

    def score(self, prepared: Mapping[int, Tensor], measuring: Measuring) -> dict[str, Any]:
        """See `Measure`."""
        found = {}
        for window, windows in prepared.items():
            options = measuring.options(f"perplexity {window}")
            found[str(window)] = window_perplexity(measuring.lm, windows, **options)
        return found

    def rows(self, rows: Rows, views: Views) -> None:
        """See `Measure`."""
        for window in common_keys(views, self.name):
            parts = {view: part[self.name][window] for view, part in views.items()}
            rows.add(f"perplexity, {int(window):,} tokens", "perplexity", parts, "ppl")


class PassKey(Measure):
    """A number hidden in prose, asked for at the end."""

    name, group = "passkey", RETRIEVAL

    def prepare(
        self, config: EvaluationConfig, tokenizer: Any, documents: Documents
    ) -> list[Prompt]:
        """See `Measure`."""
        lengths, depths = config.passkey_lengths, config.passkey_depths
        return passkey_prompts(tokenizer, lengths, depths, config.passkey_repeats, config.seed)

    def score(self, prepared: list[Prompt], measuring: Measuring) -> dict[str, Any]:
        """See `Measure`."""
        return score_prompts(measuring.lm, prepared, **measuring.options("pass key"))

    def rows(self, rows: Rows, views: Views) -> None:
        """See `Measure`."""
        rows_by_length(rows, "pass key", parts_of(views, self.name))


class Retrieval(Measure):
    """What is hidden in real text, of several kinds."""

    name, group = "retrieval", RETRIEVAL

    def prepare(
        self, config: EvaluationConfig, tokenizer: Any, documents: Documents
    ) -> dict[str, list[Prompt]]:
        """See `Measure`."""
        return retrieval_prompts(
            tokenizer,
            documents,
            config.retrieval_tasks,
            config.retrieval_lengths,
            config.retrieval_depths,
            config.retrieval_repeats,
            config.seed,
        )

    def score(self, prepared: Mapping[str, list[Prompt]], measuring: Measuring) -> dict[str, Any]:
        """See `Measure`."""
        return score_retrieval(measuring.lm, prepared, **measuring.options("retrieval"))

    def rows(self, rows: Rows, views: Views) -> None:
        """See `Measure`."""
        rows_by_length(rows, "retrieval", parts_of(views, self.name))


class Generation(Measure):
    """Repetition in what is generated freely."""

    name, group = "generation", "free generation"

    def prepare(
        self, config: EvaluationConfig, tokenizer: Any, documents: Documents
    ) -> Tensor | None:
        """See `Measure`."""
        count, tokens = config.generation_prompts, config.generation_prompt_tokens
        return generation_prompts(tokenizer, documents, count, tokens) if count else None

    def score(self, prepared: Tensor, measuring: Measuring) -> dict[str, Any]:
        """See `Measure`."""
        config, track = measuring.config, measuring.track("generation")
        tokens = config.generation_tokens
        return score_generation(measuring.lm, prepared, tokens, seed=config.seed, track=track)

    def rows(self, rows: Rows, views: Views) -> None:
        """See `Measure`."""
        if generated := parts_of(views, self.name):
            rows.add("repeated 4-grams", "rate", generated, "repeated_4grams")
            rows.add("outputs that end in a loop", "rate", generated, "loops")


class Context(Measure):
    """The loss of the same tokens, read with growing context."""

    name, group = "context", HELD_OUT

    def prepare(
        self, config: EvaluationConfig, tokenizer: Any, documents: Documents
    ) -> dict[int, Tensor]:
        """See `Measure`."""
        return context_windows(documents, config.context_lengths, config.context_windows)

    def score(self, prepared: Mapping[int, Tensor], measuring: Measuring) -> dict[str, Any]:
        """See `Measure`."""
        return context_part(prepared, measuring, "growing context")

    def rows(self, rows: Rows, views: Views) -> None:
        """The loss with all the context that a view reads, and the gain beyond the native window."""
        if context := parts_of(views, self.name):
            context_rows(rows, context)


#: In the order in which a view is measured; rows stand by their groups.
MEASURES: list[Measure] = [Perplexity(), PassKey(), Retrieval(), Generation(), Context()]


def context_part(windows: Any, measuring: Measuring, what: str) -> dict[str, Any]:
    """`context_losses` of a view; the original reads no further than its native window."""
    return context_losses(
        measuring.lm,
        windows,
        native_window=measuring.native_window,
        beyond=measuring.view != ORIGINAL,
        **measuring.options(what),
    )


def context_rows(rows: Rows, context: Mapping[str, Any], text: str = "") -> None:
    """The loss with all the context that each view reads, and the gain beyond the native window."""
    longest = {v: max(map(int, part["by_length"]), default=0) for v, part in context.items()}
    read = {v: part["by_length"][str(longest[v])] for v, part in context.items() if longest[v]}
    most, of = max(longest.values()), f"{text}: " if text else ""
    rows.add(f"{of}loss of the same tokens, {most:,} read (nats)", "loss", read, "nll")
    if gains := {v: part for v, part in context.items() if "gain" in part}:
        native = next(iter(gains.values()))["native"]
        label = f"{of}context gain, {native:,} to {most:,} tokens (nats)"
        rows.add(label, "gain", gains, "gain")


def parts_of(views: Views, name: str) -> dict[str, Any]:
    """The part of this name of every view that has it."""
    return {view: part[name] for view, part in views.items() if name in part}


def common_keys(views: Views, section: str) -> list[str]:
    """Windows, texts or tasks that every view has."""
    sections = [part.get(section, {}) for part in views.values()]
    return [key for key in (sections[0] if sections else {}) if all(key in s for s in sections)]


def rows_by_length(rows: Rows, label: str, parts: Mapping[str, Any]) -> None:
    """A row a length of prompts, or one where there are not several."""
    lengths = [part.get("by_length", {}) for part in parts.values()]
    shown = [n for n in lengths[0] if all(n in part for part in lengths)] if lengths else []
    if parts and len(shown) < 2:
        rows.add(label, "share", parts, "accuracy", "ci95")
        return
    for n in shown:
        at = {view: part["by_length"][n] for view, part in parts.items()}
        rows.add(f"{label}, {int(n):,} tokens", "share", at, "accuracy", "ci95")
