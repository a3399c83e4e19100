"""What the rules of `restore` know of a model, its text and the machine, before weights are read."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from linearard.data import DataConfig
from linearard.data.source import Source
from linearard.data.sources import held_out_below, open_source
from linearard.errors import DataError, ModelError, RecipeError
from linearard.model import AdapterConfig, ModelConfig, load_config, load_tokenizer
from linearard.restore.request import RestoreRequest
from linearard.rope import native_window
from linearard.rope.scaling import native_parameters
from linearard.train.chat_template import chat_frame

_SAMPLE = 20_000  # characters of a document that are tokenised to learn how long a token is
_SAMPLED_DOCUMENTS = 4
#: Shares of the documents that may be held out, the smallest that leaves a long enough document, or this many
#: tokens in one.
_FRACTIONS = (0.05, 0.1, 0.2, 0.3)
_ENOUGH_HELD_OUT = 16_384
#: Stands between documents in what many models were trained on, also where their EOS ends a turn.
_BETWEEN_DOCUMENTS = ("<|endoftext|>", "<|end_of_text|>")


@dataclass(frozen=True)
class TextSupply:
    """How much text there is, estimated from its characters.

    Attributes:
        lengths: tokens of each document; None: not known before it is read (a hub data set).
    """

    lengths: tuple[int, ...] | None

    @property
    def tokens(self) -> float:
        """Tokens in all; infinite where they are not known."""
        return float("inf") if self.lengths is None else float(sum(self.lengths))

    def windows(self, window: int) -> float:
        """Windows of this many tokens that cross no document; 0 where lengths are not known."""
        return 0 if self.lengths is None else sum(length // window for length in self.lengths)


@dataclass(frozen=True)
class Facts:
    """Of one model on one machine.

    Attributes:
        config: the model's text configuration.
        tokenizer: its tokenizer; None: there is only a configuration.
        native, target: windows in tokens.
        parameters: of the model.
        on_cpu: whether it will be trained on a CPU.
        self_start: what its own documents begin after; None: the tokenizer's own beginning.
        chat: whether its tokenizer has a chat template in which it can write both sides.
        supply: text to train on; None: the model writes it.
        held_out: held-out text; None: the documentation of the installed Python.
        fraction: share of the documents that is held out; None: other text is.
    """

    config: Any
    tokenizer: Any
    native: int
    target: int
    parameters: int
    on_cpu: bool
    self_start: str | None
    chat: bool
    supply: TextSupply | None
    held_out: TextSupply | None
    fraction: float | None

    @property
    def factor(self) -> float:
        """Target over native window."""
        return self.target / self.native


def gather_facts(request: RestoreRequest, model: ModelConfig, *, on_cpu: bool) -> Facts:
    """Read configuration, tokenizer and the lengths of the text.

    Args:
        request: what was asked for.
        model: how the model is loaded.
        on_cpu: whether it will be trained on a CPU.

    Raises:
        ModelError: the model cannot be read, or has no RoPE.
        DataError: the text cannot be found.
        RecipeError: the window is none that has to be stretched to.
    """
    from linearard.counting.shapes import ModelShape

    config = load_config(model)
    native_parameters(config)  # refuses a model without RoPE
    own = native_window(config)
    native = request.native_window or own
    if native > own:
        raise RecipeError(
            expected=f"--native-window of at most {own:,}, which {request.model} says it reads",
            got=f"{native:,}",
            fix="Leave it out, or give the tokens that the model was trained on.",
        )
    if request.window <= native:
        raise RecipeError(
            expected=f"a window above {native:,}, which {request.model} reads already",
            got=f"--window {request.window:,}",
            fix="Give a larger window; if the model was trained on less than its configuration says, "
            "give --native-window too.",
        )
    tokenizer = _tokenizer(model, request.data)
    shape = ModelShape.of(config, AdapterConfig(kind="direct"))
    known = {} if tokenizer is None else tokenizer.get_vocab()
    start = next((word for word in _BETWEEN_DOCUMENTS if word in known), None)
    supply, held_out, fraction = _supplies(request, tokenizer, request.window)
    return Facts(
        config=config,
        tokenizer=tokenizer,
        native=native,
        target=request.window,
        parameters=shape.base_parameters,
        on_cpu=on_cpu,
        self_start=start if known and start != tokenizer.bos_token else None,
        chat=_converses(tokenizer),
        supply=supply,
        held_out=held_out,
        fraction=fraction,
    )


def _tokenizer(model: ModelConfig, data: str | None) -> Any:
    """The tokenizer; None where there is only a configuration, which is enough for a plan without text."""
    try:
        return load_tokenizer(model)
    except ModelError:
        if data is not None:
            raise
        return None


def _converses(tokenizer: Any) -> bool:
    if not getattr(tokenizer, "chat_template", None):
        return False
    try:
        chat_frame(tokenizer)
    except DataError:
        return False
    return True


def _supplies(
    request: RestoreRequest, tokenizer: Any, target: int
) -> tuple[TextSupply | None, TextSupply | None, float | None]:
    """Text to train on, held-out text, and the share of documents that is held out (None: other text is)."""
    if request.data is None:
        return None, None, None
    data = DataConfig(train=request.data, validation=request.validation)
    source = open_source(data.train, data, data.split)
    if source.lazy:
        return TextSupply(None), TextSupply(None), None
    rate = _tokens_a_character(source, tokenizer)
    documents = [(held_out_below(text), int(rate * len(text))) for text in source.read()]
    if data.validation is not None:
        held_out = open_source(data.validation, data, data.validation_split)
        lengths = None if held_out.lazy else tuple(int(rate * len(t)) for t in held_out.read())
        return TextSupply(tuple(n for _, n in documents)), TextSupply(lengths), None
    for enough in (target, _ENOUGH_HELD_OUT):
        for fraction in _FRACTIONS:
            held = tuple(n for share, n in documents if share < fraction)
            if max(held, default=0) >= enough and len(held) < len(documents):
                kept = tuple(n for share, n in documents if share >= fraction)
                return TextSupply(kept), TextSupply(held), fraction
    return TextSupply(tuple(n for _, n in documents)), None, None


def _tokens_a_character(source: Source, tokenizer: Any) -> float:
    sample = [text[:_SAMPLE] for text in itertools.islice(source.read(), _SAMPLED_DOCUMENTS)]
    options = {"add_special_tokens": False, "verbose": False}
    tokens = sum(len(tokenizer(text, **options)["input_ids"]) for text in sample)
    if any(map(str.strip, sample)) and not tokens:
        raise ModelError(
            expected="a tokenizer that makes tokens of --data",
            got="one without words",
            fix="Put the model's tokenizer files (tokenizer.json) beside its weights.",
        )
    return tokens / max(sum(map(len, sample)), 1)
