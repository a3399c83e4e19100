"""What a model's configuration says of its own RoPE: parameters, window, rotated width, layer types."""

from __future__ import annotations

from typing import Any

from linearard.architectures import WINDOWED
from linearard.errors import RopeError

#: The window a scaling counts from. transformers reads it for yarn, llama3 and longrope only.
ORIGINAL = "original_max_position_embeddings"
#: Keys that a formula of transformers reads, beside those that every scaling has.
FORMULA_KEYS = {
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "long_factor",
    "short_factor",
}
_EVERYWHERE = {"rope_type", "type", "rope_theta", "partial_rotary_factor", ORIGINAL}
#: Keys that say which pair of dimensions turns with which axis; no window is counted with them.
_OF_AXES = ("mrope_section", "mrope_interleaved")


def native_parameters(config: Any) -> dict[str, Any]:
    """The model's own `rope_parameters` for layers that see the whole text.

    Args:
        config: a `transformers` text configuration. One that keeps an entry per layer type (Gemma 3)
            answers with that of the layers without a sliding window.

    Raises:
        RopeError: the model has no RoPE, none in layers that see the whole text, or several kinds of it.
    """
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise RopeError(
            expected="a model with rotary position embeddings (RoPE)",
            got=f"model_type {config.model_type!r}, whose configuration has no rope_parameters",
            fix="Choose a RoPE decoder such as Llama, Mistral, Qwen, OLMo2 or Gemma.",
        )
    by_type = {
        kind: own
        for kind, own in parameters.items()
        if kind not in FORMULA_KEYS | _EVERYWHERE and (own is None or isinstance(own, dict))
    }
    if not by_type:
        return dict(parameters)
    whole = {kind: own for kind, own in by_type.items() if own and kind not in WINDOWED}
    if not whole:
        raise nothing_to_stretch(config)
    if "full_attention" not in whole and len(whole) > 1:
        raise RopeError(
            expected="a model whose layers without a sliding window share one RoPE",
            got=f"model_type {config.model_type!r}, with one for each of {', '.join(sorted(whole))}",
            fix="Choose another model: one scaling cannot stand for several.",
        )
    return dict(whole.get("full_attention") or next(iter(whole.values())))


def nothing_to_stretch(config: Any) -> RopeError:
    """The refusal of a model whose RoPE lives in layers with a sliding window alone."""
    return RopeError(
        expected="RoPE in layers that see the whole text",
        got=f"model_type {config.model_type!r}, which has RoPE in layers with a sliding window alone",
        fix="Choose another model: the window of these layers does not grow, so that there is nothing to "
        "stretch.",
    )


def depends_on_length(config: Any) -> bool:
    """Whether a native table changes as the text grows, so that its module reads the length on the host.

    Args:
        config: the model's text configuration, untouched.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    found = [parameters, *(own for own in parameters.values() if isinstance(own, dict))]
    return any(own.get("rope_type") in ("dynamic", "longrope") for own in found)


def native_window(config: Any, scaling: dict[str, Any] | None = None) -> int:
    """Tokens the model was trained to read: `max_position_embeddings` before any stretch.

    A few configurations promise more than the training held (Mistral-7B-v0.1: 32768, trained on 8192).
    A scaling of such a model names the true window as its `original_max_position_embeddings`. Where the
    model's own RoPE is scaled already, that key is a parameter of its formula and says nothing of this.
    """
    longest = getattr(config, "max_position_embeddings", None)
    if not isinstance(longest, int):
        raise RopeError(
            expected="a configuration with max_position_embeddings, the model's window",
            got=f"none in that of model_type {config.model_type!r}",
            fix="Choose a RoPE decoder such as Llama, Mistral, Qwen, OLMo2 or Gemma.",
        )
    if scaling and native_parameters(config).get("rope_type", "default") == "default":
        carries = ORIGINAL in carried_keys(config)  # then it is the model's own, whatever it counts
        return longest if carries else int(scaling.get(ORIGINAL) or longest)
    return longest


def carried_keys(config: Any) -> dict[str, Any]:
    """Keys of the model's `rope_parameters` that no scaling's formula reads, but the model does.

    Ministral 3 scales its queries by `llama_4_scaling_beta`, counted from the original window; a
    configuration without them is another model. Whatever scaling is exported keeps them.
    """
    native = native_parameters(config)
    extra = {k: v for k, v in native.items() if k not in FORMULA_KEYS | _EVERYWHERE}
    if any(key not in _OF_AXES for key in extra) and native.get(ORIGINAL) is not None:
        extra[ORIGINAL] = native[ORIGINAL]
    return extra


def head_dim(config: Any) -> int:
    """Width of a head; some configurations leave it out, and some say null (Mixtral)."""
    return (
        getattr(config, "head_dim", None) or int(config.hidden_size) // config.num_attention_heads
    )
