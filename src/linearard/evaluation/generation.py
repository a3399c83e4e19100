"""Repetition in free generation: what a damaged model does long before its perplexity shows it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from linearard.data import Documents, beginning
from linearard.evaluation.batching import Track, batches
from linearard.evaluation.statistics import bootstrap_interval, mean
from linearard.evaluation.windows import cut_windows
from linearard.model import ChunkedCausalLM, plain_generation

NGRAM = 4  # tokens
LOOP_PERIOD, LOOP_REPEATS, LOOP_TOKENS = 64, 3, 64


def generation_prompts(
    tokenizer: Any, documents: Sequence[Tensor], count: int, tokens: int
) -> Tensor:
    """Beginnings to go on from: windows spread over the documents, each a text of its own.

    Args:
        tokenizer: what the documents were encoded with; what it puts before a text begins each prompt.
        documents: held-out token ids, int64 [tokens] each.
        count: how many; fewer where the documents have no more.
        tokens: of each prompt; at least 2.

    Returns:
        int64 [prompts, tokens].

    Raises:
        DataError: no document is long enough.
    """
    return cut_windows(Documents(documents, beginning(tokenizer)), tokens, count * tokens)


@torch.no_grad()
def generate(lm: ChunkedCausalLM, prompts: Tensor, tokens: int, *, track: Track = iter) -> Tensor:
    """The model's greedy continuation of every prompt, as it is now, with a key-value cache.

    Always `tokens` long: an end-of-text token is a token like any other, and the model goes on
    behind it. Defaults of the model's own generation settings (sampling, penalties) are set aside.

    Args:
        lm: the model, in the view to measure.
        prompts: int64 [prompts, tokens].
        tokens: to generate for each.
        track: wraps the batches to show progress.

    Returns:
        int64 [prompts, tokens] on the CPU.
    """
    count, length = prompts.shape
    generated = []
    with plain_generation(lm.model) as model:
        for batch in track(batches(count, length + tokens, count)):
            ids = prompts[batch].to(lm.device)
            whole = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                use_cache=True,
            )
            generated.append(whole[:, length:].cpu())
    return torch.cat(generated)


def score_generation(
    lm: ChunkedCausalLM, prompts: Tensor, tokens: int, *, seed: int, track: Track = iter
) -> dict[str, Any]:
    """`repetition` of what `generate` gives."""
    ends = lm.model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return repetition(generate(lm, prompts, tokens, track=track), ends, seed)


def repetition(outputs: Tensor, ends: Collection[int | None], seed: int) -> dict[str, Any]:
    """How much generated text repeats itself.

    Args:
        outputs: int64 [outputs, tokens].
        ends: ids of end-of-text tokens, which are counted only.
        seed: of the bootstrap over outputs.

    Returns:
        `repeated_4grams`: share of 4-grams that stand earlier in the same output;
        `distinct_4`: different 4-grams of all outputs together as a share of all their 4-grams,
        so that outputs that resemble each other count too (its interval resamples the shares
        that each output adds); `loops`: share of outputs that end in
        a loop (`ends_in_loop`); `ended`: share of outputs with an end-of-text token in them. Each
        but the last has its 95 % interval under `..._ci95`. Then `outputs` and `tokens` (of each).
    """
    rows = outputs.tolist()
    seen: set[tuple[int, ...]] = set()
    repeated, fresh = [], []
    for row in rows:
        grams = [tuple(row[i : i + NGRAM]) for i in range(len(row) - NGRAM + 1)]
        own = set(grams)
        repeated.append(1 - len(own) / len(grams))
        fresh.append(len(own - seen) / len(grams))
        seen |= own
    loops = [float(ends_in_loop(row)) for row in rows]
    result: dict[str, Any] = {}
    for name, values in (("repeated_4grams", repeated), ("distinct_4", fresh), ("loops", loops)):
        result[name] = mean(values)
        result[f"{name}_ci95"] = bootstrap_interval(values, seed)
    ended = [float(not set(ends).isdisjoint(row)) for row in rows]
    return {**result, "ended": mean(ended), "outputs": len(rows), "tokens": outputs.shape[1]}


def ends_in_loop(tokens: Sequence[int]) -> bool:
    """Whether a sequence ends in a loop.

    That is, for a period of at most LOOP_PERIOD tokens its tail repeats with that period, token
    by token, at least LOOP_REPEATS times and over at least LOOP_TOKENS tokens.
    """
    for period in range(1, LOOP_PERIOD + 1):
        tail = max(LOOP_REPEATS * period, LOOP_TOKENS)
        end = len(tokens)
        if tail <= end and tokens[end - tail + period :] == tokens[end - tail : end - period]:
            return True
    return False
