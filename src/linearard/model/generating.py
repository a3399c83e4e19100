"""Free generation without what a model brings along for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from linearard.architectures import CACHED_WHOLE


@contextmanager
def plain_generation(model: Any) -> Iterator[Any]:
    """Inside the block, the model whose `generate` follows its arguments alone.

    Generation settings of the model's own (sampling, penalties, lengths) are set aside. Of a
    `PeftModel` it is the wrapped model, which has the adapters as modules inside it.
    """
    from transformers import GenerationConfig

    model = getattr(model, "get_base_model", lambda: model)()
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield model
    finally:
        model.generation_config = own


def has_whole_cache(model: Any) -> bool:
    """Whether every layer's cache is the keys and values of all tokens."""
    config = model.config.get_text_config()
    return set(getattr(config, "layer_types", None) or ()) <= CACHED_WHOLE
