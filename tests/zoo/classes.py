"""Every decoder of transformers that has a causal language model and a rotary module, tiny and random.

The classes are enumerated from the library; a new one comes in by itself. Sizes are set under every name
that configurations have for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

import tiny

WINDOW = tiny.WINDOW  # native, of every model here
_HEADS, _EXPERTS = 4, 4
#: Where all layers are alike, and where a configuration tells several kinds.
_FEW_LAYERS, _LAYERS = 2, 4
_MOST_PARAMETERS = 20_000_000

#: Sizes by name. A configuration takes those that it has.
_SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCAB + 6,  # some tokenizer classes add tokens of their own
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": WINDOW,
    "initializer_range": 0.1,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
    "sliding_window": 24,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    # mixtures of experts
    "num_experts": _EXPERTS,
    "num_local_experts": _EXPERTS,
    "n_routed_experts": _EXPERTS,
    "moe_num_experts": _EXPERTS,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "moe_num_shared_experts": 1,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "ffn_hidden_size": 48,
    "zero_expert_num": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    # multi-head latent attention
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    "index_block_size": 8,
    "index_topk_blocks": 2,
    # state space layers of hybrids
    "mamba_d_state": 16,
    "mamba_d_ssm": 128,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "n_mamba_heads": 8,
    "mamba_headdim": 16,
    "mamba_chunk_size": 16,
    # linear attention of hybrids
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    # small parts of single architectures
    "swa_num_attention_heads": _HEADS,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "unpadded_vocab_size": tiny.VOCAB + 6,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": tiny.VOCAB + 6,
    "num_global_key_value_heads": 2,
    "global_head_dim": 16,
    "kv_channels": 16,
    "d_model": 64,
    "n_heads": _HEADS,
}
#: Taken also where the configuration's own default is empty: it means something else than a tiny size.
_EVEN_EMPTY = (
    "num_key_value_heads",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts",
    "num_experts_per_tok",
)
#: With multi-head latent attention: as many key heads as heads, RoPE on dimensions of their own.
_LATENT = {"num_key_value_heads": _HEADS, "head_dim": _SIZES["qk_rope_head_dim"]}
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_HYBRID = ["linear_attention", "full_attention"] * 2
#: What single configurations need beside: by model type.
_OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": _HYBRID, "linear_head_dim": 16, "linear_num_heads": 4},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _PLAIN_ROPE}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "gemma2": {"attn_implementation": "eager"},
    "gemma4_text": {"head_dim": 16, "global_head_dim": 16, "num_kv_shared_layers": 0},
    "gemma4_unified_text": {"head_dim": 16, "global_head_dim": 16, "num_kv_shared_layers": 0},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "granitemoehybrid": {"layer_types": _HYBRID, "position_embedding_type": "rope"},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mimo_v2_flash": {"head_dim": 24},  # of which .334 are rotated
    "minimax_m3_vl_text": {"layer_types": ["minimax_m3_sparse", "full_attention"]},
    "ministral": {"head_dim": 16},
    "qwen4_exp_text": {
        "hc_count": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "use_mem_rope": True},
    "zaya": {"num_experts_per_tok": 1},
}
#: What is no decoder of text by itself, or cannot be made tiny, and why.
LEFT_OUT = {
    "blt": "bytes, through an encoder, a decoder and a patcher of their own",
    "dots3_note_text": "sizes that differ from layer to layer",
    "moshi": "speech, with a second decoder over codebooks",
    "phi4_multimodal": "needs its vision and audio encoders",
}


@dataclass(frozen=True)
class Decoder:
    """One class: its model type, its name, its configuration."""

    model_type: str
    name: str
    config_class: type

    def config(self) -> Any:
        """A tiny configuration.

        Raises:
            Exception: whatever the configuration says of these sizes.
        """
        known = self.config_class()
        lists = [value for value in known.to_dict().values() if isinstance(value, list)]
        layers = _LAYERS if any(len(set(map(str, v))) > 1 for v in lists) else _FEW_LAYERS
        sizes = _SIZES | dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers"), layers)
        sizes = {k: v for k, v in sizes.items() if _takes(known, k)}
        if "kv_lora_rank" in sizes:
            sizes |= {k: v for k, v in _LATENT.items() if k in sizes}
        types = getattr(known, "layer_types", None)
        if isinstance(types, list) and _takes(known, "layer_types"):
            sizes["layer_types"] = _some(types, layers)
        return self.config_class(**sizes | _OWN.get(self.model_type, {}))

    def model(self, seed: int = 0) -> Any:
        """A random model in float32, in evaluation mode."""
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        with torch.device("meta"):
            size = sum(
                p.numel() for p in AutoModelForCausalLM.from_config(self.config()).parameters()
            )
        if size > _MOST_PARAMETERS:
            raise ValueError(f"{size:,} parameters: a size has another name here")
        model = AutoModelForCausalLM.from_config(self.config())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        return model.eval()


def _takes(config: Any, name: str) -> bool:
    """Whether a size has this name here and may be set."""
    own = getattr(type(config), type(config).attribute_map.get(name, name), None)
    if isinstance(own, property) and own.fset is None:
        return False
    try:
        value = getattr(config, name)
    except (
        Exception
    ):  # where every layer has its own there is none for all, which it says in its way
        return False
    return value is not None or name in _EVEN_EMPTY


def _some(types: list[str], count: int) -> list[str]:
    """As many as the tiny model has layers, of every type that occurs."""
    found = types[:count]
    missing = sorted(set(types) - set(found))
    return found[: count - len(missing)] + missing


def decoders() -> Iterator[Decoder]:
    """All with a causal language model, by model type, but `LEFT_OUT` and wrappers of a text model."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for model_type, name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()):
        config_class = CONFIG_MAPPING[model_type]
        wraps = "text_config" in config_class.sub_configs
        if not wraps and model_type not in LEFT_OUT:
            yield Decoder(model_type, name, config_class)


def has_rotary(decoder: Decoder) -> bool:
    """Whether the code of the class has frequencies at all."""
    from transformers import AutoModelForCausalLM

    module = inspect.getmodule(AutoModelForCausalLM._model_mapping[decoder.config_class])
    return "RotaryEmbedding(nn.Module)" in inspect.getsource(module)


def rotary_tables(model: Any) -> list[torch.Tensor]:
    """The frequencies of every rotary module; none for a model without."""
    return [
        buffer
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name.endswith("inv_freq") and "original" not in name
    ]
