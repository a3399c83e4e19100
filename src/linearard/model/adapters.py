"""What is trained: LoRA on the projections of q, k and v, or those projections themselves.

Both can be switched off, which gives the teacher back from the same weights: LoRA by skipping the
low-rank product, direct training by a frozen copy of the trained matrices alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from linearard.errors import CheckpointError
from linearard.fields import Beside, a_list, check_fields, described, number, one_of, text, whole
from linearard.model.load import forget_quantization
from linearard.model.packed import has_packed, is_packed, unpacked
from linearard.model.shares import gathered, local, share_like
from linearard.model.targets import as_peft_targets, find_targets
from linearard.model.two_view_linear import TwoViewLinear

_DIRECT_FILE = "direct_weights.safetensors"
#: Name, trained value in float32, the base model's value -> the value to keep.
Rounding = Callable[[str, Tensor, Tensor], Tensor]


@dataclass
class AdapterConfig:
    """Which weights the restoration may change."""

    kind: str = described(
        "lora",
        "lora, or direct: train the q, k, v matrices themselves.",
        one_of(("lora", "direct")),
    )
    r: int = described(1024, "LoRA rank (the paper's 1024).", whole(1, 1 << 16))
    alpha: float = described(
        2048.0, "LoRA alpha; the update is scaled by alpha / r.", number(0, 1e6, above=True)
    )
    dropout: float = described(0.05, "LoRA dropout.", number(0, 1, below=True))
    target_modules: list[str] | None = described(
        None,
        "Linear layers of the decoder: names (q_proj), paths (layers.3.self_attn.q_proj) or patterns "
        "(layers.*.self_attn.[qk]_proj); null finds those of q, k and v.",
        a_list(text("a name"), least=1).or_null(),
    )
    rotary_pairs: str = described(
        "kept",
        "direct only. fast: the student starts with each rotary pair that turns at least once in the "
        "native window in the slot whose stretched frequency is nearest to the pair's native one, "
        "which suits linear scaling; kept: as it is.",
        one_of(("kept", "fast")),
        Beside(
            lambda c: c.kind == "direct" or c.rotary_pairs == "kept", "kept without kind direct"
        ),
        formerly="pairs",
    )

    def __post_init__(self) -> None:
        check_fields(self, "adapter")


class Adapter:
    """The trainable part of a model, and the switch that takes it out.

    Args:
        model: a causal language model.
        config: what is trained.
        attention: the decoder's attention modules, whose projections are meant by default.
        trainable: whether to ask for gradients.

    Attributes:
        model: the model to call: a `PeftModel` for LoRA, the model itself for direct training.
    """

    def __init__(
        self,
        model: Any,
        config: AdapterConfig,
        attention: Iterable[nn.Module],
        *,
        trainable: bool = True,
    ) -> None:
        self.config = config
        targets = find_targets(model, attention, config.target_modules)
        model.requires_grad_(False)
        if config.kind == "lora":
            self.model = _with_lora(model, config, targets)
        else:
            self.model = model
            _replace_linears(model, targets)
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._by_place: dict[tuple[int, str], nn.Parameter] = {}
        if not trainable:
            self.model.requires_grad_(False)
        # peft's public `enable_adapters` also flips requires_grad of every adapter weight, which a
        # distributed wrapper must not see between its construction and the backward pass.
        kind, self._flag = (
            (_lora_layer_type(), "_disable_adapters")
            if config.kind == "lora"
            else (TwoViewLinear, "use_original")
        )
        self._switchable = [m for m in self.model.modules() if isinstance(m, kind)]
        self._merged_layers: list[tuple[nn.Module, str, Any, str]] = []

    def switch(self, on: bool) -> None:
        """Answer with the trained weights (`on`) or with the original ones."""
        for module in self._switchable:
            setattr(module, self._flag, not on)

    @contextlib.contextmanager
    def without_casts(self) -> Iterator[None]:
        """Inside autocast: leave the precision of LoRA's products to it.

        Otherwise peft casts each input up to the weights' float32, for autocast to cast it down again:
        the same numbers for four more passes over the activations of every projection.
        """
        lora: list[Any] = self._switchable if self.config.kind == "lora" else []
        for module in lora:
            module.cast_input_dtype_enabled = False
        try:
            yield
        finally:
            for module in lora:
                module.cast_input_dtype_enabled = True

    def parameters(self) -> list[nn.Parameter]:
        """The trained weights, float32, always in the same order."""
        return self._parameters

    def names(self) -> list[str]:
        """Of `parameters`, as the model's `named_parameters` has them."""
        found = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [found[id(parameter)] for parameter in self._parameters]

    def rebind(self, names: Sequence[str]) -> None:
        """Know the trained weights by name again, once others stand in their places.

        Args:
            names: in the order of `parameters`, as the model's `named_parameters` has them.
        """
        found = dict(self.model.named_parameters())
        self._parameters = [found[name] for name in names]
        self._by_place = {
            (id(module), name): parameter
            for module in self.model.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad
        }

    def trained_in(self, module: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """The trained weights below a module: each as it is now, and as `parameters` has it.

        They differ while a layer that is divided among processes runs: its weights are whole then.
        """
        return [
            (parameter, self._by_place.get((id(part), name), parameter))
            for part in module.modules()
            for name, parameter in part.named_parameters(recurse=False)
            if parameter.requires_grad
        ]

    def gathered(self) -> dict[str, Tensor]:
        """The trained weights by name, whole.

        Of a model that is divided among processes every process must ask at once; the first has them
        afterwards, in host memory, the others nothing.
        """
        trained = {id(parameter) for parameter in self._parameters}
        named = self.model.named_parameters()
        return gathered((name, p) for name, p in named if id(p) in trained)

    def save(self, folder: Path, stored: dict[str, Tensor] | None = None) -> None:
        """Write the trained weights as safetensors into an existing folder.

        Args:
            folder: an existing one.
            stored: what `gathered` gave; None: gathers them.
        """
        stored = self.gathered() if stored is None else stored
        if self.config.kind == "lora":
            # peft writes a model card template, all blanks, or changes one that a user wrote
            card = folder / "README.md"
            before = card.read_bytes() if card.exists() else None
            self.model.save_pretrained(folder, save_embedding_layers=False, state_dict=stored)
            card.unlink(missing_ok=True)
            if before is not None:
                card.write_bytes(before)
        else:
            from safetensors.torch import save_file

            tensors = {name: p.cpu().contiguous() for name, p in stored.items()}
            save_file(tensors, folder / self.weights_file, metadata={"format": "pt"})

    @property
    def weights_file(self) -> str:
        """Name of the file that `save` writes the weights into."""
        return "adapter_model.safetensors" if self.config.kind == "lora" else _DIRECT_FILE

    def load(self, folder: Path) -> None:
        """Take the weights that `save` wrote; see `read` for errors."""
        self.take(self.read(folder))

    def read(self, folder: Path) -> dict[str, torch.Tensor]:
        """Weights written by `save`, for `take`.

        Raises:
            CheckpointError: the file is missing or broken, or its tensors do not match this model's
                adapter.
        """
        name = self.weights_file
        if not (folder / name).is_file():
            raise CheckpointError(
                expected=f"{name} for adapter.kind {self.config.kind!r}",
                got=f"none in {folder}",
                fix="Check the checkpoint's path and adapter.kind.",
            )
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            stored = load_file(folder / name)
        except SafetensorError as error:
            raise CheckpointError(
                expected=f"a whole safetensors file {folder / name}",
                got=f"one that cannot be read ({error})",
                fix="Use another checkpoint.",
            ) from error
        live = self._live()
        wrong = sorted(
            key
            for key in stored.keys() | live.keys()
            if key not in stored or key not in live or stored[key].shape != live[key].shape
        )
        if wrong:
            raise CheckpointError(
                expected=f"an adapter with {len(live)} tensors that fit this model and recipe",
                got=f"{len(wrong)} tensors that do not, first {wrong[0]!r}",
                fix="Use the model, adapter.kind, adapter.r and target_modules it was trained with.",
            )
        return stored

    def take(self, stored: dict[str, torch.Tensor]) -> None:
        """Have the weights that `read` gave."""
        with torch.no_grad():
            for key, parameter in self._live().items():
                local(parameter).copy_(share_like(stored[key], parameter))

    def _live(self) -> dict[str, torch.Tensor]:
        return self._lora_state() if self.config.kind == "lora" else dict(self._direct())

    def merge(self, rounded: Rounding | None = None) -> Any:
        """Fold the trained weights into the base model and return it; the adapter is used up.

        A base in 4 bits is unpacked: to fold them into 4 bits would round them away.

        Args:
            rounded: makes the weight to keep, of any dtype, from a tensor's name, its trained value in
                float32 and the base model's own; default: the nearest in the base model's dtype. It may be
                called a second time with another one.
        """
        rounded = rounded or _nearest
        base = self._base()
        self._merged_layers = self._merged_layers or list(self._places(base))
        for parent, name, layer, path in self._merged_layers:
            setattr(parent, name, _merged(layer, path, rounded))
        if has_packed(base):
            for parent, name, layer in list(_named_linears(base, nn.Linear)):
                if is_packed(layer):
                    setattr(parent, name, unpacked(layer))
            forget_quantization(base)
        return base

    def _base(self) -> Any:
        return self.model.get_base_model() if self.config.kind == "lora" else self.model

    def _places(self, base: nn.Module) -> Iterator[tuple[nn.Module, str, Any, str]]:
        """Parent, name in it, module, and path of every trained layer."""
        kind = _lora_layer_type() if self.config.kind == "lora" else TwoViewLinear
        paths = {id(module): path for path, module in base.named_modules()}
        for parent, name, layer in _named_linears(base, kind):
            yield parent, name, layer, paths[id(layer)]

    def _lora_state(self) -> dict[str, Tensor]:
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(self.model, save_embedding_layers=False)

    def _direct(self) -> Iterator[tuple[str, Tensor]]:
        for name, module in self.model.named_modules():
            if isinstance(module, TwoViewLinear):
                yield f"{name}.weight", module.weight
                if module.bias is not None:
                    yield f"{name}.bias", module.bias


def _nearest(name: str, trained: Tensor, original: Tensor) -> Tensor:
    return trained.to(original.dtype)


@torch.no_grad()
def _merged(layer: Any, path: str, rounded: Rounding) -> nn.Linear:
    """A linear layer with the trained weights; the layer itself stays as it is."""
    if isinstance(layer, TwoViewLinear):
        pairs = {
            "weight": (layer.weight, layer.original_weight),
            "bias": (layer.bias, layer.original_bias),
        }
    else:
        linear = layer.get_base_layer()
        linear = unpacked(linear) if is_packed(linear) else linear
        change = sum(layer.get_delta_weight(adapter).float() for adapter in layer.active_adapters)
        pairs = {"weight": (linear.weight.float() + change, linear.weight)}
        plain_bias = linear.bias
    dense = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    for name, (trained, original) in pairs.items():
        if trained is not None and original is not None:
            kept = rounded(f"{path}.{name}", trained.detach(), original.detach())
            setattr(dense, name, nn.Parameter(kept, requires_grad=False))
    if not isinstance(layer, TwoViewLinear):
        dense.bias = plain_bias
    return dense


def _lora_layer_type() -> type:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return BaseTunerLayer


def _with_lora(model: Any, config: AdapterConfig, targets: list[str]) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # a float does as well
        lora_dropout=config.dropout,
        target_modules=as_peft_targets(model, targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)  # adapter weights become float32 masters


def _named_linears(model: nn.Module, kind: type[nn.Module]) -> Iterator[tuple[nn.Module, str, Any]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, kind):
                yield parent, name, child


def _replace_linears(model: nn.Module, targets: list[str]) -> None:
    for path in targets:
        parent, _, name = path.rpartition(".")
        linear = cast(nn.Linear, model.get_submodule(path))
        setattr(model.get_submodule(parent), name, TwoViewLinear(linear))
