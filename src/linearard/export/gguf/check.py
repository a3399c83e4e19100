"""What cannot be written as a GGUF, found before weights are read."""

from __future__ import annotations

from typing import Any

from linearard.errors import RecipeError
from linearard.export.gguf.families import family_of
from linearard.export.gguf.formats import GGUF_TYPES
from linearard.export.gguf.options import GgufOptions
from linearard.export.gguf.rotation import rotation_of
from linearard.export.gguf.tokenizer import check_tokenizer_source
from linearard.rope import check_scaling, compute_table, target_window


def check_gguf(
    config: Any,
    scaling: dict[str, Any],
    options: GgufOptions,
    *,
    tokenizer: Any = None,
) -> None:
    """Refuse a model, scaling, type or tokenizer that no GGUF can hold rightly.

    Args:
        config: the model's text configuration, untouched.
        scaling: as in a recipe's `rope`.
        options: type, and where the tokenizer comes from.
        tokenizer: of `transformers`.

    Raises:
        RecipeError: an unknown type.
        ModelError, RopeError: llama.cpp would run another model than transformers does.
    """
    if options.type not in GGUF_TYPES:
        raise RecipeError(
            expected=f"a type among {', '.join(GGUF_TYPES)}",
            got=repr(options.type),
            fix="Set --gguf-type.",
        )
    scaling = check_scaling(scaling, config)
    family = family_of(config, target_window(scaling, config))
    rotation_of(compute_table(scaling, config), scaling, family)
    check_tokenizer_source(options.tokenizer, tokenizer, config.vocab_size)
