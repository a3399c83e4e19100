"""Documents that the original model writes: what it would say, drawn from what it thinks likely."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linearard.capture import has_own_kernels
from linearard.data import progress_bar
from linearard.data.tokens import encode_whole
from linearard.errors import DataError
from linearard.model import (
    ChunkedCausalLM,
    RestorableModel,
    has_whole_cache,
    plain_generation,
)
from linearard.model.view_names import ORIGINAL
from linearard.train.chat_template import ChatFrame
from linearard.train.conversations import ConversationWriter
from linearard.train.row_sampling import draw_texts, fits

_LENGTH = 640  # tokens of a document that does not end by itself before
_CONVERSATION = 768  # tokens of a conversation, which ends there at the latest
_LARGEST_BATCH, _SMALLEST_BATCH = 2048, 8
# A batch takes as long as its longest document, however many there are: rather too many than one batch more.
_MARGIN = 1.125
# Most conversations end by themselves long before; before the first batch nobody knows of this model.
_FULL_CONVERSATIONS = 0.4
_ENOUGH_TRIES = 256  # documents without a token: the model will not begin any
# Of all the memory and not of what is free: another batch is another text.
_GPU_SHARE, _CPU_BYTES = 0.25, 2**30
_LOGIT_BYTES = 16  # float32: logits, their copy, probabilities, and what is drawn from them


@dataclass(frozen=True)
class Assignment:
    """What is to be written.

    Attributes:
        start: ids that every document begins after.
        end: the id that ends a document; neither it nor `start` is part of one.
        tokens: of all documents together, each with one more that will join it to the next.
        seed: of the sampling.
        frame: of the conversations that are to be written, or None for documents.
    """

    start: tuple[int, ...]
    end: int
    tokens: int
    seed: int
    frame: ChatFrame | None = None

    def length(self, restorable: RestorableModel) -> int:
        """Most tokens of a document: with its start it fits the native window."""
        most = _LENGTH if self.frame is None else _CONVERSATION
        return min(most, restorable.rope.native_window - len(self.start))


def write_documents(
    restorable: RestorableModel, assignment: Assignment, *, progress: bool
) -> list[str]:
    """Sample documents from the original model at temperature 1, from all of its vocabulary.

    Of conversations the chat template's own tokens are given, and no turn holds one of them. Random
    numbers of the caller's are not touched, and nothing that was trained is used. On one machine the same
    assignment gives the same documents.

    Args:
        restorable: the model, with its tokenizer.
        assignment: how much, and between what.
        progress: show a bar.

    Returns:
        As many documents as hold `assignment.tokens` when they are encoded again, none of them blank.

    Raises:
        DataError: the model ends every document at once.
    """
    length, wanted = assignment.length(restorable), assignment.tokens
    assumed = length if assignment.frame is None else _FULL_CONVERSATIONS * length
    most = _largest_batch(restorable, length + len(assignment.start))
    texts: list[str] = []
    tried = found = 0
    chance = random.Random(assignment.seed)
    with (
        progress_bar(
            desc="writing", total=wanted, unit="token", unit_scale=True, shown=progress
        ) as bar,
        _writer(restorable, assignment.seed) as model,
    ):
        draw = _way_to_draw(restorable, model, assignment)
        while found < wanted:
            expected = found / tried if found else assumed / (1 + tried)
            count = max(math.ceil(_MARGIN * (wanted - found) / expected), _SMALLEST_BATCH)
            count = min(count, most)
            writer: _Documents | ConversationWriter = _Documents(count, assignment.end)
            if assignment.frame is not None:
                writer = ConversationWriter(assignment.frame, count, length, chance)
            draw(writer, count, length, _Bar(bar))
            texts_now = _texts_of(writer, restorable.tokenizer)
            new = [text for text in texts_now if text.strip()]
            # Counted as they will be read: what was sampled is often not how its text is encoded.
            encoded = encode_whole(restorable.tokenizer, new, progress=False, characters=None)
            tried += len(texts_now)
            for text, ids in zip(new, encoded, strict=True):
                if found < wanted:
                    texts.append(text)
                    found += len(ids) + 1
            bar.n = min(found, wanted)
            bar.refresh()
            if not found and tried >= _ENOUGH_TRIES:
                raise DataError(
                    expected="a model that writes text of its own",
                    got=f"{tried} documents without any, after the tokens {list(assignment.start)}",
                    fix="Set data.self_start to what stands before documents in its training text."
                    if assignment.frame is None
                    else "Leave data.self_chat out for a model that asks and answers nothing.",
                )
    return texts


class _Bar:
    """Moves a bar with the tokens that are drawn; it is also a streamer of `generate`."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def add(self, tokens: int) -> None:
        """So many more tokens."""
        self._bar.update(min(tokens, self._bar.total - self._bar.n))

    def put(self, ids: Tensor) -> None:
        """One more token for every document, int64 `[batch]`."""
        self.add(ids.numel())

    def end(self) -> None:
        """All documents have ended."""


@contextlib.contextmanager
def _writer(restorable: RestorableModel, seed: int) -> Iterator[Any]:
    """The original model without dropout, with random numbers of its own."""
    model, device = restorable.model, restorable.device
    training, on_gpu = model.training, device.type == "cuda"
    model.eval()
    try:
        with (
            torch.random.fork_rng([device] if on_gpu else []),
            restorable.view(ORIGINAL),
            plain_generation(model) as writer,
        ):
            torch.default_generator.manual_seed(seed)
            if on_gpu:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield writer
    finally:
        model.train(training)
        if on_gpu:
            torch.cuda.empty_cache()  # key-value caches of every length are of no use to training


class _Documents:
    """Documents that end with one token: a `Guide` that lets everything be drawn."""

    steers, control = False, ()

    def __init__(self, count: int, end: int) -> None:
        self.documents: list[list[int]] = [[] for _ in range(count)]
        self._over, self._end = [False] * count, end

    def wishes(self, texts: Sequence[int]) -> Tensor:
        """See `Guide`: none."""
        return torch.full((3, len(texts)), -1)

    def take(self, texts: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """See `Guide`."""
        for text, new in zip(texts, tokens, strict=True):
            if self._over[text] or self._end in new:
                new = [] if self._over[text] else new[: new.index(self._end)]
                self._over[text] = True
            self.documents[text] += new

    def is_over(self, text: int) -> bool:
        """See `Guide`."""
        return self._over[text]


_Draw = Callable[["_Documents | ConversationWriter", int, int, _Bar], None]


def _way_to_draw(restorable: RestorableModel, model: Any, assignment: Assignment) -> _Draw:
    """How texts of this model are drawn: by `draw_texts` where it can be run so, else by `generate`."""
    start, lm = assignment.start, ChunkedCausalLM(model)
    longest = assignment.length(restorable) + len(start)
    plain = has_whole_cache(model) and has_own_kernels(model)
    if plain and _sees_all(restorable.config, longest) and fits(lm, start):
        return lambda writer, count, length, bar: draw_texts(
            lm, start, count, length, writer, bar.add
        )
    return lambda writer, count, length, bar: _generate(
        model, assignment, count, length, bar, writer
    )


def _sees_all(config: Any, tokens: int) -> bool:
    """Whether no layer's window is shorter than a text of so many tokens."""
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return all(window is None or window >= tokens for window in windows)


def _texts_of(writer: _Documents | ConversationWriter, tokenizer: Any) -> list[str]:
    """What was written; a conversation without an answer is empty."""
    if isinstance(writer, _Documents):
        return _decoded(tokenizer, writer.documents)
    return [talk.text(lambda ids: _decoded(tokenizer, [ids])[0]) for talk in writer.conversations]


@torch.no_grad()
def _generate(
    model: Any,
    assignment: Assignment,
    count: int,
    length: int,
    bar: _Bar,
    writer: _Documents | ConversationWriter,
) -> None:
    """Let the `generate` of `transformers` draw the tokens: it knows every model's cache."""
    from transformers import LogitsProcessorList, StoppingCriteriaList

    steering: dict[str, Any] = {"eos_token_id": assignment.end}
    if isinstance(writer, ConversationWriter):
        steering = {
            "logits_processor": LogitsProcessorList([writer]),
            "stopping_criteria": StoppingCriteriaList([writer.ended]),
        }
    start = torch.tensor([assignment.start] * count, device=model.device)
    whole = model.generate(
        input_ids=start,
        attention_mask=torch.ones_like(start),
        max_new_tokens=length,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        use_cache=True,
        pad_token_id=assignment.end,
        streamer=bar,
        **steering,
    )
    if isinstance(writer, _Documents):
        writer.take(range(count), whole[:, len(assignment.start) :].tolist())


def _decoded(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    """The texts, special tokens within them (those of a chat, for instance) as they are written."""
    return tokenizer.batch_decode(
        rows, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def _largest_batch(restorable: RestorableModel, length: int) -> int:
    """Documents of this many tokens whose key-value cache and logits have room."""
    config, device = restorable.config, restorable.device
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    element = restorable.model.get_input_embeddings().weight.element_size()
    cache = 2 * config.num_hidden_layers * heads * width * element * length
    room = _CPU_BYTES
    if device.type == "cuda":
        room = int(_GPU_SHARE * torch.cuda.get_device_properties(device).total_memory)
    fits = room // (cache + _LOGIT_BYTES * config.vocab_size)
    return min(max(fits, 1), _LARGEST_BATCH)
