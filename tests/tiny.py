"""Tiny random models and a byte-level tokenizer, built in code: nothing is downloaded.

Weights are drawn wide, so that attention is far from uniform and a wrong scale or a wrong rotation shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WINDOW = 64  # native window of every tiny model
VOCAB = 258  # 256 bytes, <s>, </s>
LINEAR = {"rope_type": "linear", "factor": 4}
#: One scaling of every type, each four times, for the head_dim of 8 that most tiny models have.
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": LINEAR,
    "dynamic": {"rope_type": "dynamic", "factor": 4},
    "yarn": {"rope_type": "yarn", "factor": 4},
    "llama3": {"rope_type": "llama3", "factor": 4, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {"rope_type": "longrope", "factor": 4, "long_factor": [1.0, 1.5, 2.5, 4.0]},
    "table": {
        "rope_type": "table",
        "factor": 4,
        "inv_freq": [1.0, 0.05, 0.002, 0.0002],
        "attention_factor": 1.1,
    },
}

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    "initializer_range": 0.2,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
#: What DeepSeek and its relatives need beside `_SHAPE`: latent attention, a few experts.
MLA = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "num_key_value_heads": 4,
}
#: Name of the configuration class, and what differs from `_SHAPE`.
_ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 24}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 12}),
    "olmo2": ("Olmo2Config", {}),
    "gemma": ("GemmaConfig", {"head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 10,
            "sliding_window": 24,
            # what capping of scores needs; some versions of transformers choose sdpa and drop it
            "attn_implementation": "eager",
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 10,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3": ("Phi3Config", {}),
}
#: Names of what every tiny model says of its shape.
SHAPE_KEYS = tuple(_SHAPE)
ARCHITECTURES = tuple(_ARCHITECTURES)
#: No part of the sweeps over `ARCHITECTURES`: mixtures of experts, which need more said than their name, and
#: decoders with other names of modules, or (the Japanese one) an attention that cannot be selected.
_ARCHITECTURES |= {
    "gpt_neox": ("GPTNeoXConfig", {"hidden_size": 64}),
    "gpt_neox_japanese": ("GPTNeoXJapaneseConfig", {"hidden_size": 64}),
    "mixtral": ("MixtralConfig", {}),
    "glm4_moe": ("Glm4MoeConfig", {}),
}


def tiny_config(architecture: str = "llama", **changes: Any) -> Any:
    """Configuration of a tiny model; `changes` win over the defaults."""
    import transformers

    name, own = _ARCHITECTURES[architecture]
    return getattr(transformers, name)(**_SHAPE | own | changes)


def tiny_model(architecture: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """A random causal language model in float32, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms start as all ones, biases as all zeros: hide nothing
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def tiny_tokenizer() -> Any:
    """One token a byte; a beginning-of-text token in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*alphabet, "<s>", "</s>"])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", model_max_length=WINDOW
    )


def tiny_restorable(
    architecture: str = "llama",
    scaling: dict[str, Any] | None = None,
    *,
    model: Any = None,
    name: str = "tiny",
    trainable: bool = True,
    changes: dict[str, Any] | None = None,
    **adapter: Any,
) -> Any:
    """A restorable tiny model; LoRA of rank 4 without dropout unless `adapter` says otherwise."""
    from linearard.model import AdapterConfig, RestorableModel

    adapter = {"r": 4, "alpha": 8.0, "dropout": 0.0} | adapter
    torch.manual_seed(0)  # LoRA's A is drawn
    return RestorableModel(
        tiny_model(architecture, **(changes or {})) if model is None else model,
        tiny_tokenizer(),
        dict(scaling or LINEAR),
        AdapterConfig(**adapter),
        name=name,
        trainable=trainable,
    )


def save_tiny_base(folder: Path, architecture: str = "llama", **changes: Any) -> Path:
    """A model folder as `from_pretrained` reads it, tokenizer included."""
    tiny_model(architecture, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Path(folder)


def tokens(batch: int = 2, length: int = 41, *, seed: int = 0) -> torch.Tensor:
    """Random int64 `[batch, length]`."""
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(seed))


def perturb_adapter(restorable: Any, *, size: float = 0.3, seed: int = 1) -> None:
    """Move every trainable weight by noise, as training would: LoRA starts as no change at all."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in restorable.model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(size * noise.to(parameter))
