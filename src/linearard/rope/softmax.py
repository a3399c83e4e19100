"""The scale of attention scores, which a few models draw from their RoPE.

DeepSeek's YaRN with `mscale_all_dim` multiplies the softmax scale by a number that grows with the factor;
`transformers` works it out when an attention module is built. A stretched view has the number of its own
scaling, which is what a model has that is loaded with it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from linearard.errors import RopeError
from linearard.rope.layers import attention_modules


class SoftmaxScales:
    """Scores' factors by layer in both views.

    Args:
        model: a `transformers` decoder with its native configuration.
        scaling: a checked scaling.
        config: the model's text configuration, untouched.

    Raises:
        RopeError: a scaling that would silently take the model's own softmax scale away.
    """

    def __init__(self, model: nn.Module, scaling: dict[str, Any], config: Any) -> None:
        self._modules = attention_modules(model)
        native = getattr(config, "rope_parameters", None) or {}
        self._scales: dict[str, dict[int, float]] = {}
        if not (native.get("mscale_all_dim") or scaling.get("mscale_all_dim")):
            return
        plain = _with(config, {"rope_type": "default", "rope_theta": scaling["rope_theta"]})
        ratios = {
            layer: _built(module, config) / _built(module, plain)
            for layer, module in self._modules.items()
        }
        if scaling["rope_type"] != "yarn" and any(abs(x - 1) > 1e-6 for x in ratios.values()):
            raise RopeError(
                expected="rope_type 'yarn' for a model whose own yarn also scales its softmax "
                "(mscale_all_dim)",
                got=repr(scaling["rope_type"]),
                fix="Give yarn with a larger factor, counted from the model's own original window.",
            )
        stretched = _with(config, scaling)
        live = {layer: float(module.scaling) for layer, module in self._modules.items()}
        self._scales = {
            "native": live,
            "stretched": {
                layer: live[layer] * _built(module, stretched) / _built(module, config)
                for layer, module in self._modules.items()
            },
        }

    def put(self, view: str) -> None:
        """Let the attention scale its scores as in a view."""
        for layer, scale in self._scales.get(view, {}).items():
            self._modules[layer].scaling = scale

    def of(self, view: str) -> dict[int, float]:
        """Factor on the scores by layer."""
        live = {layer: float(module.scaling) for layer, module in self._modules.items()}
        return dict(self._scales.get(view, live))


def _with(config: Any, parameters: dict[str, Any]) -> Any:
    changed = copy.deepcopy(config)
    changed.rope_parameters = dict(parameters)
    return changed


def _built(module: nn.Module, config: Any) -> float:
    try:
        with torch.device("meta"):
            return float(type(module)(config, layer_idx=module.layer_idx).scaling)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise RopeError(
            expected="an attention module made of a configuration and a layer's number, where "
            "mscale_all_dim may change its softmax scale",
            got=f"{type(module).__name__}: {' '.join(str(error).split())[:200]}",
            fix="Leave rope.mscale_all_dim out, or choose another model.",
        ) from error
