"""Prompts with something hidden in them: what pass key and retrieval have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from linearard.errors import DataError
from linearard.evaluation.batching import Track
from linearard.evaluation.continuations import Continuation, score_continuations
from linearard.evaluation.statistics import bootstrap_interval, mean
from linearard.model import ChunkedCausalLM


@dataclass(frozen=True)
class Prompt:
    """One prompt with its answer at the end.

    Attributes:
        length: the length asked for, in tokens; prompt and answer have no more.
        depth: where the needle stands, 0 at the start and 1 at the end.
        answer: what is asked for.
        continuation: the tokens; those of the answer are scored.
    """

    length: int
    depth: float
    answer: str
    continuation: Continuation


def check_prompt(tokenizer: Any, prompt: Prompt, needles: Sequence[str], field: str) -> None:
    """Decode the prompt and find the needles and the answer; spaces do not count.

    Some tokenizers put spaces of their own, hence the last.

    Args:
        tokenizer: what the prompt was encoded with.
        prompt: the prompt.
        needles: the sentences that must be among its tokens.
        field: the configuration field that switches the metric off.

    Raises:
        DataError: something is lost, or the prompt is longer than it may be.
    """
    ids, start = prompt.continuation.ids, prompt.continuation.start
    text, answer = (_squeeze(tokenizer.decode(part)) for part in (ids[:start], ids[start:]))
    kept = all(_squeeze(needle) in text for needle in needles)
    if not (kept and answer.endswith(_squeeze(prompt.answer)) and len(ids) <= prompt.length):
        raise DataError(
            expected=f"a tokenizer that keeps the answer {prompt.answer} at {prompt.length} tokens",
            got=f"{type(tokenizer).__name__}, which loses it",
            fix=f"Switch this metric off for the model: {field}: [].",
        )


def score_prompts(
    lm: ChunkedCausalLM,
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
    seed: int,
    track: Track = iter,
) -> dict[str, Any]:
    """Share of prompts whose answer is, token by token, the model's greedy choice.

    Returns:
        What `shares` gives.
    """
    return shares(prompts, prompt_hits(lm, prompts, batch_size=batch_size, track=track), seed)


def prompt_hits(
    lm: ChunkedCausalLM, prompts: Sequence[Prompt], *, batch_size: int, track: Track = iter
) -> list[float]:
    """Of each prompt, 1.0 where every token of its answer is the model's greedy choice, or 0.0.

    One forward pass per prompt with the answer in place: greedy decoding gives the answer exactly
    where every token of it is the most likely one after those before it.
    """
    continuations = [prompt.continuation for prompt in prompts]
    scores = score_continuations(lm, continuations, batch_size=batch_size, track=track)
    return [float(score.greedy) for score in scores]


def shares(prompts: Sequence[Prompt], hits: Sequence[float], seed: int) -> dict[str, Any]:
    """Shares of hits with 95 % bootstrap intervals.

    Returns:
        `accuracy`, `ci95`, `prompts`; `by_length`, which has the same three for each length; and
        `cells`: a list of `{"length", "depth", "accuracy", "prompts"}`.
    """
    lengths: dict[str, list[float]] = {}
    cells: dict[tuple[int, float], list[float]] = {}
    for prompt, hit in zip(prompts, hits, strict=True):
        lengths.setdefault(str(prompt.length), []).append(hit)
        cells.setdefault((prompt.length, prompt.depth), []).append(hit)
    return {
        **_share(hits, seed),
        "by_length": {length: _share(part, seed) for length, part in lengths.items()},
        "cells": [
            {"length": length, "depth": depth, "accuracy": mean(cell), "prompts": len(cell)}
            for (length, depth), cell in cells.items()
        ],
    }


def _share(hits: Sequence[float], seed: int) -> dict[str, Any]:
    return {"accuracy": mean(hits), "ci95": bootstrap_interval(hits, seed), "prompts": len(hits)}


def _squeeze(text: str) -> str:
    return "".join(text.split())
