"""Base weights in 4 bits: NF4 by bitsandbytes, in blocks of 64 with a float32 scale each.

Linear layers of the decoder are packed; embeddings, norms and the head stay as they are. A product unpacks
its matrix for the moment.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from linearard.errors import DeviceError, RecipeError

BLOCK = 64  # weights with one scale


def check_packing() -> None:
    """Refuse where weights cannot be packed.

    Raises:
        RecipeError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(
            expected="the package bitsandbytes for model.load_in_4bit",
            got="no such package",
            fix="Install it (pip install bitsandbytes), or set model.load_in_4bit to false.",
        )


def packing(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` needs to pack weights as it reads them, for products in `dtype`."""
    from transformers import BitsAndBytesConfig

    # Scales stay as they are: they say which weights were packed, the same on every device.
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=False,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def keep_layout(model: nn.Module) -> None:
    """Leave packed weights as they are: on some CPUs bitsandbytes lays them out anew, for inference alone.

    Raises:
        DeviceError: on a CPU, rows that bitsandbytes would unpack wrongly there.
    """
    for module in filter(is_packed, model.modules()):
        module.support_avx512bf16_for_cpu = False
        if module.weight.device.type == "cpu" and module.in_features % BLOCK:
            raise DeviceError(
                expected=f"a GPU, or rows of whole blocks of {BLOCK}, for model.load_in_4bit",
                got=f"a CPU, and rows of {module.in_features}",
                fix="Set model.device to cuda, or leave model.load_in_4bit out.",
            )


def is_packed(module: nn.Module) -> bool:
    """Whether this is a linear layer whose weight is packed."""
    return isinstance(module, nn.Linear) and hasattr(module.weight, "quant_state")


def has_packed(model: nn.Module) -> bool:
    """Whether any layer is packed."""
    return any(map(is_packed, model.modules()))


def unpacked(linear: nn.Linear) -> nn.Linear:
    """A dense layer of the same numbers as this packed one, with a bias of its own."""
    from bitsandbytes.functional import dequantize_4bit

    dense = nn.Linear(linear.in_features, linear.out_features, device="meta", bias=False)
    weight = dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    dense.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None:
        dense.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
    return dense
