"""What is measured at the end."""

from __future__ import annotations

from typing import Any

from linearard.data.config import PYDOC
from linearard.model.view_names import ORIGINAL, RESTORED, STRETCHED
from linearard.restore.choice import Choice
from linearard.restore.facts import Facts

_SHORT = 2048
_TOKENS, _TOKENS_ON_CPU = 131_072, 8192
_SEQUENCES = 1024  # in a forward pass: as many short ones as its tokens allow
_SHORTEST_PROMPT = 512  # a question, its needle and something to hide it in


def choose_measures(facts: Facts, tasks: str | None = None) -> tuple[dict[str, Any], list[Choice]]:
    """The section `evaluation` of a recipe.

    Args:
        facts: of model and text.
        tasks: folder of task files, or None.
    """
    if facts.on_cpu:
        return _on_cpu(facts, tasks), []
    short = min(_SHORT, facts.native)
    lengths = [short, facts.native]
    while lengths[-1] * 2 < facts.target:
        lengths.append(lengths[-1] * 2)
    lengths = sorted({*lengths, facts.target})
    longest, all_tokens = _held_out(facts)
    told = []
    windows = [length for length in lengths if length <= longest] or [short]
    if windows[-1] < facts.target:
        told.append(
            Choice(
                "perplexity",
                f"up to {windows[-1]:,} tokens",
                "no held-out document is longer; documents are not joined for it",
            )
        )
    searched = [n for n in {short, facts.native, facts.target // 2} if n < all_tokens]
    evaluation: dict[str, Any] = {
        "views": [ORIGINAL, STRETCHED, RESTORED],
        "perplexity_windows": windows,
        "perplexity_tokens": _TOKENS,
        "agreement_window": short,
        "agreement_tokens": _TOKENS,
        "passkey_lengths": [n for n in lengths if n >= _SHORTEST_PROMPT],
        "retrieval_lengths": [n for n in sorted(searched) if n >= _SHORTEST_PROMPT],
        "retrieval_tasks": ["single", "word", "multikey"],
        "retrieval_repeats": 1,
        "batch_size": _SEQUENCES,
    }
    if windows[-1] > facts.native:
        grown = {short, facts.native, 4 * facts.native, windows[-1]}
        evaluation["context_lengths"] = [n for n in sorted(grown) if n <= windows[-1]]
    if facts.held_out is not None:
        evaluation["texts"] = {"documentation": PYDOC}
    if tasks is not None:
        evaluation |= {"tasks_dir": tasks}
    return evaluation, told


def _on_cpu(facts: Facts, tasks: str | None) -> dict[str, Any]:
    """What a few cores measure in a minute or two."""
    short = min(_SHORT, facts.native)
    lengths = {short, min(2 * short, facts.target)}
    evaluation: dict[str, Any] = {
        "views": [ORIGINAL, STRETCHED, RESTORED],
        "perplexity_windows": [short],
        "perplexity_tokens": _TOKENS_ON_CPU,
        "agreement_window": short,
        "agreement_tokens": _TOKENS_ON_CPU,
        "passkey_lengths": [n for n in sorted(lengths) if n >= _SHORTEST_PROMPT],
        "passkey_repeats": 1,
        "batch_size": 8,
    }
    return evaluation if tasks is None else evaluation | {"tasks_dir": tasks}


def _held_out(facts: Facts) -> tuple[float, float]:
    """Tokens of the longest held-out document, and of all."""
    if facts.held_out is None:  # the documentation of the installed Python
        return _SHORT, float("inf")
    if facts.held_out.lengths is None:
        return float("inf"), float("inf")
    return max(facts.held_out.lengths, default=0), sum(facts.held_out.lengths)
