"""Which of llama.cpp's model classes runs a model, and what that class cannot do.

llama.cpp's classes differ in how much of RoPE a file may say. Its Llama and Phi-3 classes divide the
frequencies by a tensor of the file, so that any table can be written. The others compute theirs from a
base, a factor and YaRN's usual ramp. Qwen2 is Llama with biases and another order of the rotated pairs, so
it is written as Llama, which reads biases too. Read in llama.cpp's src/models on 2026-12-01.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linearard.errors import ModelError


@dataclass(frozen=True)
class Family:
    """How the models of one `model_type` are written.

    Attributes:
        arch: name of the member of `gguf.MODEL_ARCH`.
        table: names of the tensors that hold the frequencies' divisors, none where the class reads none.
        yarn: whether the class computes YaRN's usual ramp, for every layer that is stretched and no other.
        interleaved: whether rotated pairs lie side by side in the file, half a head apart in transformers.
        absorbs: the parameter whose scale is that of the queries.
        shifted_norms: whether the file holds 1 + weight for norms.
        windows: whether the class keeps sliding windows.
    """

    arch: str
    table: tuple[str, ...] = ()
    yarn: bool = False
    interleaved: bool = False
    absorbs: str = "self_attn.q_norm"
    shifted_norms: bool = False
    windows: bool = False


_LLAMA = Family("LLAMA", ("rope_freqs.weight",), interleaved=True, absorbs="self_attn.q_proj")
FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "phi3": Family(
        "PHI3",
        ("rope_factors_long.weight", "rope_factors_short.weight"),
        absorbs="self_attn.qkv_proj",
    ),
    "qwen3": Family("QWEN3", yarn=True),
    "olmo2": Family("OLMO2", yarn=True),
    "gemma3_text": Family("GEMMA3", shifted_norms=True, windows=True),
}


def family_of(config: Any, target: int) -> Family:
    """How a model is written.

    Args:
        config: its text configuration.
        target: tokens it was stretched to.

    Raises:
        ModelError: llama.cpp would run another model than transformers does.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            expected=f"a model_type that --format gguf can write: {', '.join(FAMILIES)}",
            got=repr(config.model_type),
            fix="Export it merged and convert that with llama.cpp's own converter.",
        )
    window = _sliding_window(config)
    if window and window < target and not family.windows:
        raise ModelError(
            expected=f"full attention in every layer: llama.cpp's {family.arch} class has no sliding window",
            got=f"a sliding window of {window} tokens below the target of {target}",
            fix="Use the merged format with transformers or vLLM.",
        )
    capped = getattr(config, "attn_logit_softcapping", None)
    if capped and family.arch == "GEMMA3":
        raise ModelError(
            expected="attention scores without a cap: llama.cpp's GEMMA3 class has none",
            got=f"attn_logit_softcapping {capped}",
            fix="Use the merged format with transformers or vLLM.",
        )
    return family


def _sliding_window(config: Any) -> int | None:
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", None) is False:
        return None
    if types is not None and "sliding_attention" not in types:
        return None
    return window
