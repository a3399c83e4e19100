"""The held-out documents of an evaluation: what a single run and a sweep read alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from linearard.data import DataConfig, token_documents
from linearard.evaluation.config import EvaluationConfig


def held_out_documents(data: DataConfig, tokenizer: Any, config: EvaluationConfig) -> list[Tensor]:
    """Held-out documents, token ids int64 `[tokens]` each, long enough for the shortest window.

    Raises:
        DataError: the text is missing or unreadable, or no document is long enough.
    """
    windows = [*config.perplexity_windows, config.agreement_window]
    return token_documents(
        data,
        tokenizer,
        split="validation",
        min_tokens=min((w for w in windows if w), default=1),
    )
