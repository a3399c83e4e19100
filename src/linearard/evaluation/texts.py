"""Held-out text from elsewhere: does what was restored hold where nothing was trained?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def read_texts(
    config: EvaluationConfig, data: DataConfig, tokenizer: Any, *, progress: bool = False
) -> dict[str, Tensor]:
    """Windows of every text that the configuration names; none without texts.

    The documents of a text are joined, with the end-of-text token between them, and cut into
    windows of `agreement_window` tokens: source files and manual pages are short, and every one
    of them counts as much as it is long. Windows are drawn from all of the text with `data.seed`.

    Args:
        config: `texts`, `texts_tokens` and `agreement_window` are read.
        data: what the model is trained on; its cache and ways of reading are used, but no limit
            or change that is meant for training.
        tokenizer: a fast tokenizer of `transformers`.
        progress: show a bar while tokenising.

    Returns:
        Name to int64 [windows, agreement_window].

    Raises:
        DataError: a text is missing, too short, or trained on.
    """
    count = max(1, config.texts_tokens // max(config.agreement_window, 1))
    texts = {}
    for name, source in config.texts.items():
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
        try:
            blocks = token_blocks(
                held_out,
                tokenizer,
                config.agreement_window,
                split="validation",
                count=count,
                progress=progress,
            )
        except DataError as error:
            raise error.reworded(
                expected=f"{error.expected} (evaluation.texts.{name})",
                fix=f"{error.fix} evaluation.texts_tokens says how much is read of each text.",
            ) from error
        texts[name] = torch.stack([blocks[index]["input_ids"] for index in range(count)])
    return texts


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
