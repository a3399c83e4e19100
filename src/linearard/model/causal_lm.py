"""A causal language model taken apart: hidden states once, logits a few rows at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from linearard.capture import SharedSequence, padded_length, unpadded
from linearard.errors import ModelError

Views = Mapping[str, Callable[[], AbstractContextManager[Any]]]
LOGIT_ELEMENTS = 2**25  # float32 logits formed at once: 128 MiB


class ChunkedCausalLM:
    """Hidden states and logits of a Hugging Face causal LM, apart.

    A window of 65,536 tokens with 128k tokens of vocabulary has 34 GB of float32 logits; its
    hidden states have a few hundred MB. So the decoder runs once over the window and the LM head
    over a few rows at a time. `check` proves on the live model that both together are the model.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self._decoder, self.head = model.get_decoder(), model.get_output_embeddings()
        if self.head is None or self._decoder is model:
            raise ModelError(
                expected="a causal language model with a decoder and an LM head",
                got=type(model).__name__,
                fix="Load the model with AutoModelForCausalLM.",
            )
        config = model.config.get_text_config()
        self._scale = (getattr(config, "logit_scale", None) or 1.0) / (
            getattr(config, "logits_scaling", None) or 1.0
        )
        self.vocab_size: int = config.vocab_size
        self._softcap = getattr(config, "final_logit_softcapping", None)

    @property
    def device(self) -> torch.device:
        """Where the weights live now; a trainer moves a model after it was taken apart."""
        return self.model.device

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        shared: SharedSequence | None = None,
    ) -> Tensor:
        """Hidden states [batch, tokens, hidden] after the last norm, in the model's dtype.

        Args:
            input_ids: int64 [batch, tokens], on any device.
            attention_mask: int64 [batch, tokens], 1 for tokens and 0 for padding on the right.
            shared: the processes that share the window; the hidden states are those of this one's part
                of the tokens then, and there is no padding.
        """
        if shared is not None:
            return self._shared_hidden(input_ids, shared)
        whole = contextlib.nullcontext()
        if attention_mask is None:
            whole = unpadded(self.model)
        else:
            attention_mask = attention_mask.to(self.device)
        with whole:
            outputs = self._decoder(
                input_ids=input_ids.to(self.device), attention_mask=attention_mask, use_cache=False
            )
        return outputs.last_hidden_state

    def _shared_hidden(self, input_ids: Tensor, shared: SharedSequence) -> Tensor:
        own = shared.part(input_ids.shape[1])
        positions = torch.arange(own.start, own.stop, device=self.device)[None]
        with unpadded(self.model):
            outputs = self._decoder(
                input_ids=input_ids[:, own].to(self.device), position_ids=positions, use_cache=False
            )
        return outputs.last_hidden_state

    def begin(self, input_ids: Tensor) -> tuple[Any, Tensor]:
        """Read prompts that are to go on: a cache of all keys and values, and the last hidden states.

        Args:
            input_ids: int64 [batch, tokens], on any device; all of one length.

        Returns:
            A `Cache` of `transformers` that may have more tokens at its end, and [batch, hidden].
        """
        from transformers import DynamicCache

        tokens = input_ids.shape[1]
        # Nothing attends to what comes after it: a length for which attention has its fastest kernel.
        further = padded_length(tokens) - tokens
        input_ids = functional.pad(input_ids.to(self.device), (0, further))
        cache = DynamicCache()  # without a configuration it keeps what a sliding window has passed
        with unpadded(self.model):
            outputs = self._decoder(
                input_ids=input_ids, use_cache=True, **{self._cache_name: cache}
            )
        return cache, outputs.last_hidden_state[:, tokens - 1]

    def go_on(
        self, input_ids: Tensor, positions: Tensor, cache: Any, attention_mask: Tensor | None
    ) -> Tensor:
        """Hidden states [batch, hidden] of one more token each.

        Args:
            input_ids: int64 [batch, 1].
            positions: int64 [batch, 1], in each sequence without its padding.
            cache: what was read before; it takes the token in.
            attention_mask: int64 [batch, tokens], 0 for padding on the left; None: there is none.
        """
        outputs = self._decoder(
            input_ids=input_ids.to(self.device),
            position_ids=positions,
            attention_mask=attention_mask,
            use_cache=True,
            **{self._cache_name: cache},
        )
        return outputs.last_hidden_state[:, -1]

    @property
    def _cache_name(self) -> str:
        """What the decoder calls its cache; transformers renames it."""
        return (
            "cache" if "cache" in signature(self._decoder.forward).parameters else "past_key_values"
        )

    def head_is_linear(self, hidden: Tensor) -> bool:
        """Whether logits are `hidden @ head.weight.T` and nothing else, in the dtype of both."""
        head = self.head
        hooked = bool(head._forward_hooks or head._forward_pre_hooks)
        plain = type(head) is torch.nn.Linear and head.bias is None and not hooked
        return (
            plain
            and self._scale == 1
            and not self._softcap
            and head.weight.dtype == hidden.dtype
            and head.weight.device == hidden.device
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [rows, vocab] of hidden states [rows, hidden]."""
        logits = self.head(hidden) * self._scale if self._scale != 1 else self.head(hidden)
        if self._softcap:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits.float()

    def chunks(self, rows: int) -> Iterator[slice]:
        """Slices over `rows` rows whose logits fit the memory budget."""
        step = max(1, LOGIT_ELEMENTS // self.vocab_size)
        return (slice(start, min(start + step, rows)) for start in range(0, rows, step))

    def check(self, views: Views, input_ids: Tensor) -> None:
        """Compare with the model's own logits in every view, on a few tokens.

        The head is applied in the first view, the hidden states come from each view: so a view
        that changed the LM head would be found too.

        Args:
            views: what to enter; the first one is the original.
            input_ids: int64 [tokens].

        Raises:
            ModelError: the model forms its logits in another way.
        """
        input_ids = input_ids[None].to(self.device)
        first = next(iter(views.values()))
        for name, view in views.items():
            with view():
                expected = self.model(input_ids=input_ids, use_cache=False).logits[0]
                hidden = self.hidden(input_ids)[0]
            with first():
                got = self.logits(hidden)
            tolerance = max(4 * torch.finfo(expected.dtype).eps, 1e-4)
            error = (got - expected.float()).abs().max() / expected.float().abs().max()
            if not error <= tolerance:
                raise ModelError(
                    expected="logits that are the LM head applied to the decoder's output",
                    got=f"a relative difference of {error:.2g} in {type(self.model).__name__}, "
                    f"view {name!r}",
                    fix="Use a model without a special output stage.",
                )
