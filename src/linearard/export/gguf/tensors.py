"""Weights under a GGUF's names, in its order of the rotated pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from linearard.errors import ModelError
from linearard.export.gguf.families import Family

#: Parts of a multimodal model around its language model.
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.")


def named_tensors(
    model: Any, family: Family, query_scale: float, rotary_dim: int
) -> Iterator[tuple[str, Tensor, torch.dtype]]:
    """The weights of a merged model as its GGUF holds them, one at a time.

    Args:
        model: of `transformers`, on any device.
        family: see `families`.
        query_scale: what the queries are multiplied by.
        rotary_dim: dimensions of a head that are rotated.

    Yields:
        Name, a tensor on the CPU (in float32 where it was scaled), and the precision that it has in the
        model. Tied output weights are left out.

    Raises:
        ModelError: a parameter has no name in the GGUF.
    """
    import gguf

    config = model.config.get_text_config()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.arch], config.num_hidden_layers)
    scale = query_scale * _own_query_scale(config, family)
    for name, tensor in model.state_dict().items():
        name = name.replace("language_model.", "", 1)
        if any(part in name for part in _OTHER_PARTS):
            continue
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise ModelError(
                expected=f"parameters that llama.cpp's {family.arch} class has",
                got=repr(name),
                fix="Export it merged and convert that with llama.cpp's own converter.",
            )
        tensor, own = tensor.detach().cpu(), tensor.dtype
        if family.shifted_norms and name.endswith("norm.weight"):
            tensor = tensor.float() + 1
        if family.absorbs in name and not math.isclose(scale, 1, rel_tol=1e-9):
            tensor = _scaled(tensor.float(), scale, config, family, rotary_dim)
        if family.interleaved and (".q_proj." in name or ".k_proj." in name):
            key = ".k_proj." in name
            heads = config.num_key_value_heads if key else config.num_attention_heads
            tensor = _side_by_side(tensor, heads)
        yield new, tensor, own


def _scaled(tensor: Tensor, scale: float, config: Any, family: Family, rotary_dim: int) -> Tensor:
    """The queries' part of a parameter times `scale`: of the rotated dimensions only."""
    if not family.absorbs.endswith("_proj"):  # a norm in front of a full rotation
        return tensor * scale
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows = torch.ones(tensor.shape[0])
    queries = rows[: config.num_attention_heads * head_dim].view(-1, head_dim)
    queries[:, :rotary_dim] = scale
    return tensor * rows.view(-1, *[1] * (tensor.dim() - 1))


def _side_by_side(tensor: Tensor, heads: int) -> Tensor:
    """Rows (i, i + head_dim / 2) of every head next to each other."""
    halves = tensor.view(heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _own_query_scale(config: Any, family: Family) -> float:
    """What the model scales its queries by, over what llama.cpp does."""
    if family.arch != "GEMMA3":
        return 1.0
    of_27b = config.num_hidden_layers == 62  # llama.cpp tells Gemma 3 27B by its layers
    there = config.hidden_size // config.num_attention_heads if of_27b else config.head_dim
    return math.sqrt(there / config.query_pre_attn_scalar)
