"""One copy of a model's weights, three views of it.

| view        | RoPE      | adapters | role                                 |
| ----------- | --------- | -------- | ------------------------------------ |
| `original`  | native    | off      | the teacher                          |
| `stretched` | stretched | off      | the model before training            |
| `restored`  | stretched | on       | the student, and the view at rest    |
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch

from linearard.capture import AttentionTap, LayerTap
from linearard.errors import ModelError, RecipeError
from linearard.model.adapters import Adapter, AdapterConfig
from linearard.model.fused import fuse_layers
from linearard.model.load import (
    ModelConfig,
    check_tokenizer,
    load_model,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
)
from linearard.model.loading_shares import empty_model, read_shares, samples
from linearard.model.packed import has_packed, is_packed
from linearard.model.rotary_pairs import move_pairs
from linearard.model.rows import has_added_rows
from linearard.model.sharding import check_shardable, shard
from linearard.model.shares import is_sharded, local, several_processes
from linearard.model.view_names import ORIGINAL, RESTORED, STRETCHED, UNTRAINED
from linearard.rope import RopeViews

_VIEWS: dict[str, tuple[Literal["native", "stretched"], bool]] = {
    ORIGINAL: ("native", False),
    STRETCHED: ("stretched", False),
    RESTORED: ("stretched", True),
}


class RestorableModel:
    """A RoPE decoder with its native and its stretched self.

    Args:
        model: a `transformers` causal language model, freshly loaded.
        tokenizer: its tokenizer.
        scaling: the stretch, as in `rope_parameters` (see `rope.check_scaling`).
        adapter: what is trained.
        name: how the user named the base model; written into checkpoints.

    Attributes:
        model: the model to call; it behaves as the current view.
        rope, adapter: its RoPE views and its trainable part.
        tap, layers: what its attention and its layers compute.
        fused: the modules that have a fused form.
        packed: whether base weights are in 4 bits.
        resized: whether rows were added to its embeddings.

    Raises:
        ModelError, RopeError: the model or the scaling cannot work, found before any training.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        scaling: dict[str, Any],
        adapter: AdapterConfig,
        *,
        name: str = "",
        trainable: bool = True,
        fingerprint: str | None = None,
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.config = model.config.get_text_config()
        if (
            getattr(self.config, "head_dim", 0) is None
        ):  # which half of transformers' formulas multiply
            self.config.head_dim = self.config.hidden_size // self.config.num_attention_heads
        self.packed = has_packed(model)
        self.fingerprint = fingerprint or fingerprint_of(self.config, _samples(model))
        self.resized = has_added_rows(model)
        self.rope = RopeViews(model, scaling)
        self.tap, self.layers = AttentionTap(model), LayerTap(model)
        self.adapter = Adapter(model, adapter, self.tap.modules.values(), trainable=trainable)
        self.model = self.adapter.model
        self.fused = fuse_layers(self.model)
        self._current = RESTORED
        self._kept: dict[str, list[torch.Tensor]] = {}
        self.rope.check()
        if adapter.rotary_pairs == "fast":
            move_pairs(model, self.tap, self.rope)

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        scaling: dict[str, Any],
        adapter: AdapterConfig,
        *,
        tokenizer: Any = None,
        trainable: bool = True,
    ) -> RestorableModel:
        """Load the base model a recipe names and make its views."""
        check_trainable(config, adapter)
        options: dict[str, Any] = {"name": config.name, "trainable": trainable}
        divided = config.sharded and several_processes()
        empty = empty_model(config, adapter) if divided else None
        if empty is not None:
            model, files = empty
            tokenizer = load_tokenizer(config) if tokenizer is None else tokenizer
            check_tokenizer(tokenizer, model.get_input_embeddings().num_embeddings, config.name)
            known = fingerprint_of(model.config.get_text_config(), samples(model, files))
            drawing = torch.get_rng_state()
            made = cls(model, tokenizer, scaling, adapter, fingerprint=known, **options)
            check_shardable(made)
            device = resolve_device(config.device)
            read_shares(made, files, device, resolve_dtype(config.dtype, device), drawing)
            return made
        model, tokenizer = load_model(config, tokenizer)
        loaded = cls(model, tokenizer, scaling, adapter, **options)
        if divided:
            shard(loaded)
        return loaded

    @property
    def sharded(self) -> bool:
        """Whether its layers are divided among processes, which must all call it at once."""
        return any(map(is_sharded, self.adapter.parameters()))

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.model.parameters()).device

    @contextlib.contextmanager
    def view(self, name: str) -> Iterator[Any]:
        """Let the model behave as `original`, `stretched`, `restored` or a remembered view inside the block.

        Raises:
            ModelError: there is no view of this name.
        """
        before = self._current
        self._become(name)
        try:
            yield self.model
        finally:
            self._become(before)

    def views(self) -> dict[str, Callable[[], contextlib.AbstractContextManager[Any]]]:
        """Context managers by view name, the original first: what evaluation takes.

        Views kept with `remember` stand between `stretched` and `restored`.
        """
        names = [*UNTRAINED, *self._kept, RESTORED]
        return {name: functools.partial(self.view, name) for name in names}

    def remember(self, name: str) -> None:
        """Keep a copy of the trained weights as one more view, for instance those after a stage."""
        self._kept[name] = [local(p.detach()).clone() for p in self.adapter.parameters()]

    def _become(self, name: str) -> None:
        if name not in _VIEWS and name not in self._kept:
            raise ModelError(
                expected=f"a view among {', '.join(self.views())}",
                got=repr(name),
                fix="Name one of these.",
            )
        if self._current in self._kept:
            self._exchange(self._current)
        if name in self._kept:
            self._exchange(name)
        rope, adapters = _VIEWS.get(name, _VIEWS[RESTORED])
        self.rope.activate(rope)
        self.adapter.switch(adapters)
        self._current = name

    def _exchange(self, name: str) -> None:
        """Swap kept and live weights; doing it twice undoes it."""
        live = self.adapter.parameters()
        kept = self._kept[name]
        if any(map(is_sharded, live)):  # whose memory FSDP gathers from
            for parameter, data in zip(live, kept, strict=True):
                share = local(parameter.detach())
                before = share.clone()
                share.copy_(data)
                data.copy_(before)
            return
        self._kept[name] = [parameter.data for parameter in live]
        for parameter, data in zip(live, kept, strict=True):
            parameter.data = data


def check_trainable(config: ModelConfig, adapter: AdapterConfig) -> None:
    """Refuse an adapter that this model cannot have, before it is loaded.

    Raises:
        RecipeError: direct training of weights in 4 bits.
    """
    if config.load_in_4bit and adapter.kind != "lora":
        raise RecipeError(
            expected="adapter.kind lora with model.load_in_4bit",
            got=repr(adapter.kind),
            fix="Train LoRA, or leave model.load_in_4bit out: direct training changes the base weights.",
        )


def fingerprint_of(config: Any, samples: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hash of the architecture and a sample of the weights, the same in every precision.

    Every weight is rounded to bfloat16 first: loading in float32 or bfloat16 gives one fingerprint. Of those
    in 4 bits the scales are taken, which are the same wherever they were packed.

    Args:
        config: the text configuration.
        samples: the first 64 numbers of every weight, by name, in the model's order.
    """
    digest = hashlib.sha256()
    for key in (
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    ):
        digest.update(f"{key}={getattr(config, key, None)};".encode())
    for name, sample in samples:
        numbers = sample.to(torch.bfloat16).view(torch.int16).cpu().numpy()
        digest.update(name.encode() + numbers.tobytes())
    return digest.hexdigest()


def _samples(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    packed = {id(m.weight): m.weight.quant_state.absmax for m in model.modules() if is_packed(m)}
    for name, parameter in model.named_parameters():
        yield name, packed.get(id(parameter), parameter.detach()).flatten()[:64]
