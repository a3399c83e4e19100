"""Held-out text from elsewhere: does what was restored hold where nothing was trained?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from linearard.data import DataConfig, token_blocks
from linearard.errors import DataError
from linearard.evaluation.agreement import window_agreement
from linearard.evaluation.batching import Track
from linearard.evaluation.config import EvaluationConfig
from linearard.evaluation.perplexity import window_perplexity
from linearard.model import ChunkedCausalLM, Views


@dataclass(frozen=True)
class TextWindows:
    """Windows of texts, each name to int64 `[windows, tokens]`.

    Attributes:
        short: of `texts`, in windows of `agreement_window` tokens.
        long: of `context_texts`, in windows of the longest of `context_lengths`.
    """

    short: dict[str, Tensor] = field(default_factory=dict)
    long: dict[str, Tensor] = field(default_factory=dict)


def read_texts(
    config: EvaluationConfig, data: DataConfig, tokenizer: Any, *, progress: bool = False
) -> TextWindows:
    """Windows of every text that the configuration names; none without texts.

    The documents of a text are joined, with the end-of-text token between them, and cut into
    windows: source files and manual pages are short, and every one of them counts as much as it
    is long. Windows are drawn from all of the text with `data.seed`.

    Args:
        config: what to measure.
        data: what the model is trained on; its cache and ways of reading are used, but no limit
            or change that is meant for training.
        tokenizer: a fast tokenizer of `transformers`.
        progress: show a bar while tokenising.

    Raises:
        DataError: a text is missing, too short, or trained on.
    """
    short, long = {}, {}
    for name, source in config.texts.items():
        window = config.agreement_window
        size = (window, max(1, config.texts_tokens // window))
        with _named(f"texts.{name}", "texts_tokens"):
            short[name] = _windows(source, data, tokenizer, *size, progress)
    for name, source in config.context_texts.items():
        size = (max(config.context_lengths), config.context_windows)
        with _named(f"context_texts.{name}", "context_windows"):
            long[name] = _windows(source, data, tokenizer, *size, progress)
    return TextWindows(short, long)


def _windows(
    source: str, data: DataConfig, tokenizer: Any, window: int, count: int, progress: bool
) -> Tensor:
    # As validation text, so that what is trained on is refused; without what training adds.
    held_out = DataConfig(
        train=data.train,
        validation=source,
        text_column=data.text_column,
        split=data.split,
        validation_split=data.split,
        streaming=data.streaming,
        pack=True,
        cache_dir=data.cache_dir,
        seed=data.seed,
    )
    options = {"split": "validation", "count": count, "progress": progress}
    blocks = token_blocks(held_out, tokenizer, window, **options)
    return torch.stack([blocks[index]["input_ids"] for index in range(count)])


@contextmanager
def _named(text: str, budget: str) -> Iterator[None]:
    """Name the field of a text, and that of how much is read, in what is wrong with it."""
    try:
        yield
    except DataError as error:
        raise error.reworded(
            expected=f"{error.expected} (evaluation.{text})",
            fix=f"{error.fix} evaluation.{budget} says how much is read of each text.",
        ) from error


def text_perplexity(
    lm: ChunkedCausalLM, windows: Tensor, *, batch_size: int, seed: int, track: Track = iter
) -> dict[str, Any]:
    """Perplexity of one text in the view as it is now.

    Returns:
        `ppl`, `ppl_ci95`, `tokens` (predicted) and `windows`, as `window_perplexity` has them.
    """
    measured = window_perplexity(lm, windows, batch_size=batch_size, seed=seed, track=track)
    return {key: measured[key] for key in ("ppl", "ppl_ci95", "tokens", "windows")}


def text_agreement(
    lm: ChunkedCausalLM,
    views: Views,
    names: Sequence[str],
    texts: Mapping[str, Tensor],
    *,
    batch_size: int,
    seed: int,
    track: Callable[[str], Track],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Agreement of views with the original on every text.

    Args:
        lm, views, names, batch_size, seed: as for `window_agreement`.
        texts: name to int64 [windows, tokens].
        track: makes what shows the progress on a text.

    Returns:
        View to text to `kl`, `kl_ci95`, `top1`, `top1_ci95`, `windows` and `tokens`.
    """
    agreement: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in names}
    for text, windows in texts.items():
        options = {"batch_size": batch_size, "seed": seed, "track": track(text)}
        for name, measured in window_agreement(lm, views, names, windows, **options).items():
            agreement[name][text] = {
                key: value for key, value in measured.items() if not key.startswith("window_")
            }
    return agreement
