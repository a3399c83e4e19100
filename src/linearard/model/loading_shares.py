"""A model that is divided among processes while it is read: no process ever holds more than a layer whole.

The model is made without weights. Then each layer in turn is read from the safetensors files, gets its
adapter's numbers, and is divided at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from linearard.model.adapters import AdapterConfig
from linearard.model.load import (
    ModelConfig,
    names_gguf,
    resolve_device,
    resolve_dtype,
    whole_config,
)
from linearard.model.sharding import finish_sharding, shard_layer, shard_mesh
from linearard.model.two_view_linear import TwoViewLinear

_SAMPLE = 64


class Weights(Protocol):
    """Whatever gives a tensor by its name."""

    def read(self, name: str) -> Tensor:
        """All of one."""


class WeightFiles:
    """The tensors of a model's safetensors files, by name.

    Args:
        folder: of a model, in the layout of the Hugging Face hub.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("model*.safetensors")):
            file = safe_open(path, framework="pt")
            self._files |= dict.fromkeys(file.keys(), file)

    @property
    def names(self) -> set[str]:
        """Of all tensors."""
        return set(self._files)

    def read(self, name: str) -> Tensor:
        """All of one, in host memory."""
        return self._files[name].get_tensor(name)

    def beginning(self, name: str, numbers: int) -> Tensor:
        """The first numbers of one, `[numbers]` or fewer."""
        part = self._files[name].get_slice(name)
        first, *others = part.get_shape()
        rows = min(first, math.ceil(numbers / max(math.prod(others), 1)))
        return part[:rows].flatten()[:numbers]


def empty_model(config: ModelConfig, adapter: AdapterConfig) -> tuple[Any, WeightFiles] | None:
    """The model without weights, but with its buffers, and its files.

    Returns:
        None where it has to be read whole: from a GGUF, with other names in its files than in the model, or
        with what changes its weights before they are trained.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    folder = Path(config.name).expanduser()
    plain = not (config.resize_embeddings or config.trust_remote_code or config.load_in_4bit)
    plain = plain and adapter.rotary_pairs == "kept" and not config.gguf_file
    if not plain or names_gguf(config.name) or not folder.is_dir():
        return None
    dtype = resolve_dtype(config.dtype, resolve_device(config.device))
    options = {"attn_implementation": config.attn_implementation}
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            whole_config(config), dtype=dtype, **{k: v for k, v in options.items() if v}
        )
    model.tie_weights()
    files = WeightFiles(folder)
    wanted = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - wanted
    if not wanted <= files.names or files.names - wanted - tied:
        return None
    return model.eval(), files


def samples(model: nn.Module, files: WeightFiles) -> Iterator[tuple[str, Tensor]]:
    """The first numbers of every weight, for the model's fingerprint."""
    for name, _ in model.named_parameters():
        yield name, files.beginning(name, _SAMPLE)


def read_shares(
    restorable: Any, files: Weights, device: torch.device, dtype: Any, drawing: Tensor
) -> None:
    """Read every weight of a model that has none yet, and divide its layers among all processes.

    Args:
        restorable: a model without weights, adapter included.
        files: where they are.
        device: of this process.
        dtype: of frozen weights.
        drawing: the state of random numbers in which the adapter was made.
    """
    model, mesh = restorable.model, shard_mesh(device)
    trained = restorable.adapter.names()
    filling = _Filling(model, files, device, dtype, drawing)
    for index, layer in sorted(restorable.layers.layers.items()):
        filling.fill(layer)
        shard_layer(layer, index, restorable.tap, mesh)
    filling.fill(model)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    finish_sharding(restorable, mesh, trained)
    restorable.rope.check()


class _Filling:
    """Gives empty weights their numbers: those of files, and of LoRA the ones that peft draws."""

    def __init__(
        self,
        model: nn.Module,
        files: Weights,
        device: torch.device,
        dtype: torch.dtype,
        drawing: Tensor,
    ) -> None:
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._files, self._device, self._dtype, self._drawing = files, device, dtype, drawing
        places = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        self._in_two_places = {number for number, count in places.items() if count > 1}
        self._tied: dict[int, nn.Parameter | None] = {}

    @torch.no_grad()
    def fill(self, module: nn.Module) -> None:
        """All that is still empty in a module."""
        for part in module.modules():
            if isinstance(part, TwoViewLinear) and part.original_weight.is_meta:
                self._fill_two_views(part)
            elif hasattr(part, "lora_A"):
                self._draw(part)
            for name, parameter in list(part._parameters.items()):
                if parameter is None or not parameter.is_meta:
                    continue
                if id(parameter) in self._tied:  # an embedding that is the head, too
                    setattr(part, name, self._tied[id(parameter)])
                else:
                    self._put(part, name, self._read(part, name))
                    if id(parameter) in self._in_two_places:
                        self._tied[id(parameter)] = part._parameters[name]

    def _read(self, module: nn.Module, name: str) -> Tensor:
        path = self._paths[id(module)].removeprefix("base_model.model.").replace(".base_layer", "")
        return self._files.read(f"{path}.{name}").to(self._device, self._dtype)

    def _put(self, module: nn.Module, name: str, numbers: Tensor) -> None:
        wanted = module._parameters[name].requires_grad
        setattr(module, name, nn.Parameter(numbers.to(self._device), requires_grad=wanted))

    def _fill_two_views(self, module: TwoViewLinear) -> None:
        for name in ("weight", "bias"):
            if module._parameters[name] is not None:
                numbers = self._read(module, name)
                module._buffers[f"original_{name}"] = numbers
                self._put(module, name, numbers.float())

    def _draw(self, layer: Any) -> None:
        """The factors as peft drew them when it made the layer, and lost them."""
        for name, down in layer.lora_A.items():
            up = layer.lora_B[name]
            if not down.weight.is_meta:
                continue
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(self._drawing)
                first = nn.Linear(down.in_features, down.out_features, bias=False)
                nn.Linear(up.in_features, up.out_features, bias=False)
                nn.init.kaiming_uniform_(first.weight, a=math.sqrt(5))
                self._drawing = torch.get_rng_state()
            self._put(down, "weight", first.weight.detach().to(down.weight.dtype))
            self._put(up, "weight", torch.zeros(up.weight.shape, dtype=up.weight.dtype))
