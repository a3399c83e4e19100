"""What this package knows of architectures beside what their configurations say.

An architecture that is not here works as long as it keeps to the conventions of `transformers`; it has no
fused layers, and its windows are read with masks (docs/how-to/extending.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: By convention, the projections that make queries, keys and values, and which of them each makes; the first
#: set that a model has all of is its own. Those of latent attention make them together, from "".
PROJECTIONS: tuple[dict[str, str], ...] = (
    {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
    {"qkv_proj": "qkv"},
    {"query_key_value": "qkv"},
    {"Wqkv": "qkv"},
    {"c_attn": "qkv"},
    # With and without a narrow layer before the queries (and their gates).
    {"q_a_proj": "", "q_b_proj": "", "kv_a_proj_with_mqa": "", "kv_b_proj": ""},
    {"q_a_proj": "", "q_gate_proj": "", "kv_a_proj_with_mqa": "", "kv_b_proj": ""},
    {"q_proj": "q", "kv_a_proj_with_mqa": "", "kv_b_proj": ""},
)
#: Norms of queries and keys.
HEAD_NORMS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm")

#: Types of layers in `layer_types`: those that mix tokens in another way than by attention,
#: or not at all; those that see a window of the text alone; those that cache the keys and values of all
#: tokens, and not a state.
WITHOUT_ATTENTION = {"linear_attention", "conv", "mamba", "recurrent", "mlp", "moe"}
WINDOWED = {"sliding_attention", "hybrid_sliding", "chunked_attention"}
CACHED_WHOLE = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True)
class InTransformers4:
    """How transformers 4 reads a model that transformers 5 has written.

    Attributes:
        names: what its class calls `rope_theta` and `partial_rotary_factor`; what it does not know it drops.
        linear_alone: it knows linear scaling alone, with no other key than type and factor.
        longrope_alone: it knows LongRoPE alone, without an attention factor of its own.
        ignores_scaling: its code never looks at a scaling.
        reads_configuration: False: it refuses the configuration, for its parts or the names of layer types.
        same_with_a_mask: False: given a mask without padding, it attends to later tokens, in the base model
            too.
        bfloat16_parts: parameters of the activation are bfloat16, whatever the others are.
    """

    names: tuple[str, ...] = ()
    linear_alone: bool = False
    longrope_alone: bool = False
    ignores_scaling: bool = False
    reads_configuration: bool = True
    same_with_a_mask: bool = True
    bfloat16_parts: bool = False


@dataclass(frozen=True)
class Architecture:
    """The decoders of one `model_type`.

    Attributes:
        package: its folder in `transformers.models`, where that is not its `model_type`; the names of its
            classes begin with it.
        causal_alone: its attention is causal within the `sliding_window` that it is given, and nothing else:
            whole windows need no mask.
        caps_or_sinks: it hands caps of scores or sinks to the attention function, and does nothing else with
            its mask.
        adds_to_mask: it adds a mask of its own to the one it is given, and before transformers 5.24 does not
            say so.
        fused: which of `norm`, `mlp` and `attention` has a form in `model.fused`.
        norms_from_one: the weights of its norms are differences to 1.
        window_of: what has the sliding window that its attention hands on, `config` or `module`; empty: it
            hands none on.
        llama_class: llama.cpp's converter writes its `llama3` scaling.
        in_transformers_4: how transformers 4 reads it.
    """

    package: str = ""
    causal_alone: bool = False
    caps_or_sinks: bool = False
    adds_to_mask: bool = False
    fused: tuple[str, ...] = ()
    norms_from_one: bool = False
    window_of: str = ""
    llama_class: bool = False
    in_transformers_4: InTransformers4 = field(default_factory=InTransformers4)


_ALL, _PARTS = ("norm", "mlp", "attention"), ("norm", "mlp")
_UNREADABLE = Architecture(in_transformers_4=InTransformers4(reads_configuration=False))
_NEOX = Architecture(in_transformers_4=InTransformers4(("rotary_emb_base", "rotary_pct")))
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(causal_alone=True, fused=_ALL, llama_class=True),
    "mistral": Architecture(causal_alone=True, fused=_ALL, window_of="config", llama_class=True),
    "qwen2": Architecture(causal_alone=True, fused=_ALL, window_of="module"),
    "qwen3": Architecture(causal_alone=True, fused=_PARTS),
    "olmo": Architecture(in_transformers_4=InTransformers4(linear_alone=True)),
    "olmo2": Architecture(
        causal_alone=True, fused=_PARTS, in_transformers_4=InTransformers4(linear_alone=True)
    ),
    "gemma": Architecture(causal_alone=True, fused=("norm",), norms_from_one=True),
    "gemma2": Architecture(
        causal_alone=True, caps_or_sinks=True, fused=("norm",), norms_from_one=True
    ),
    "gemma3_text": Architecture("gemma3", causal_alone=True, fused=("norm",), norms_from_one=True),
    "phi3": Architecture(
        causal_alone=True, fused=("norm",), in_transformers_4=InTransformers4(longrope_alone=True)
    ),
    "phi4_multimodal": Architecture(in_transformers_4=InTransformers4(longrope_alone=True)),
    "gpt_oss": Architecture(caps_or_sinks=True),
    "gpt_neox": _NEOX,
    "gpt_neox_japanese": _NEOX,
    "dbrx": _UNREADABLE,
    "granitemoehybrid": _UNREADABLE,
    "doge": Architecture(
        adds_to_mask=True, in_transformers_4=InTransformers4(same_with_a_mask=False)
    ),
    "apertus": Architecture(in_transformers_4=InTransformers4(bfloat16_parts=True)),
    "nemotron": Architecture(in_transformers_4=InTransformers4(ignores_scaling=True)),
}
_UNKNOWN = Architecture()


def architecture(model_type: Any) -> Architecture:
    """What is known of the decoders of a `model_type`, of a text configuration."""
    return ARCHITECTURES.get(model_type, _UNKNOWN)


def architecture_of_package(name: str) -> Architecture:
    """What is known of the decoders in a folder of `transformers.models`."""
    found = (known for kind, known in ARCHITECTURES.items() if (known.package or kind) == name)
    return next(found, _UNKNOWN)
