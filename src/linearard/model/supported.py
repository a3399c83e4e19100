"""What can be refused of a model without its weights: on a copy that has none."""

from __future__ import annotations

import copy
from typing import Any

import torch

from linearard.capture import AttentionTap
from linearard.errors import ModelError, RopeError, shown
from linearard.model.adapters import AdapterConfig
from linearard.model.targets import find_targets
from linearard.rope import RopeViews


def empty_model(config: Any) -> Any:
    """A model on the `meta` device; takes no memory and a fraction of a second.

    Args:
        config: a `transformers` text configuration; it is left as it is.

    Raises:
        ModelError: no causal language model has such a configuration.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.bfloat16)
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            expected="the configuration of a causal language model",
            got=f"{type(config).__name__}: {' '.join(str(error).split())[:200]}",
            fix="Check model.name.",
        ) from error


def check_supported(config: Any, scaling: dict[str, Any], adapter: AdapterConfig) -> None:
    """Refuse an architecture, a scaling or targets that cannot work, before a weight is read.

    A model of its own code (`trust_remote_code`) is not looked at: its class is not known here.

    Args:
        config: a `transformers` text configuration; it is left as it is.
        scaling: the stretch, see `rope.check_scaling`.
        adapter: what is to be trained.

    Raises:
        ModelError, RopeError: what `RestorableModel` would refuse.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    model = empty_model(config)
    views = RopeViews(model, scaling)
    try:
        views.check()
    except RopeError as error:
        other = "Choose another model: its rotary module does more than its frequencies say."
        raise error.reworded(fix=other) from None
    tap = AttentionTap(model)
    decoder = model.get_decoder()
    inside = set(decoder.modules()) if isinstance(decoder, torch.nn.Module) else set()
    if decoder is model or not inside.issuperset(tap.modules.values()):
        raise ModelError(
            expected="a causal language model whose get_decoder() is its stack of layers",
            got=f"{type(model).__name__}, whose is a {type(decoder).__name__}",
            fix="Choose a RoPE decoder such as Llama, Mistral, Qwen, OLMo2 or Gemma.",
        )
    asked = adapter.target_modules
    if asked is None or not any("." in entry for entry in asked):
        # The paths of a model around this one, with a vision tower, begin otherwise.
        targets = find_targets(model, tap.modules.values(), asked)
        head = model.get_output_embeddings()
        if any(model.get_submodule(path) is head for path in targets):
            raise ModelError(
                expected="a frozen LM head: no loss trains it",
                got=f"adapter.target_modules {shown(asked)}, which name it",
                fix="Leave the head out of adapter.target_modules.",
            )
