"""The keys of a GGUF that say what the model is."""

from __future__ import annotations

import math
from typing import Any

from linearard.export.gguf.families import Family
from linearard.export.gguf.rotation import Rotation


def add_keys(
    writer: Any, config: Any, family: Family, rotation: Rotation, window: int, rotary_dim: int
) -> None:
    """Write shape, window and RoPE.

    Args:
        writer: a `gguf.GGUFWriter` of the family's architecture.
        config: the text configuration.
        family: see `families`.
        rotation: what the file says about RoPE beside its tensors.
        window: tokens that the stretched model reads.
        rotary_dim: dimensions of a head that are rotated.
    """
    import gguf

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(window)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(rotary_dim)
    writer.add_rope_freq_base(rotation.base)
    if rotation.yarn is not None:
        factor, original = rotation.yarn
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(original)
        # llama.cpp multiplies by its own factor; ours is in the weights
        writer.add_rope_scaling_attn_factors(1 / (1 + 0.1 * math.log(factor)))
    elif not math.isclose(rotation.linear, 1, rel_tol=1e-6):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rotation.linear)
    if family.windows:
        _add_windows(writer, config)


def _add_windows(writer: Any, config: Any) -> None:
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    writer.add_sliding_window(config.sliding_window)
    if sliding != [(layer + 1) % 6 != 0 for layer in range(len(sliding))]:
        writer.add_sliding_window_pattern(sliding)
    local = config.rope_parameters["sliding_attention"]["rope_theta"]
    if local != 10000:  # what llama.cpp takes without a key
        writer.add_rope_freq_base_swa(local)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
