"""Documents to token ids: one way for the blocks and for whole documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import closing

import torch

from linearard.data.pieces import encode_together
from linearard.data.progress import progress_bar
from linearard.errors import DataError

_BATCH_CHARACTERS = 4_000_000  # some eight books: the tokenizer takes a document a core


def tokenizer_hash(tokenizer) -> str:
    """A hash of the tokenizer's serialised form."""
    form = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # left over from the last call, not used here
        form.pop(state, None)
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps([form, special]).encode()).hexdigest()


def beginning(tokenizer) -> list[int]:
    """All that a tokenizer puts before a text: nothing, its BOS token, or several (GLM has two).

    It stands before everything that is a text's beginning to the model: windows of training and evaluation,
    prompts, and documents that the model writes.

    Args:
        tokenizer: any tokenizer of `transformers`.

    Raises:
        DataError: it changes a text by what it puts around it, so that no beginning can be told.
    """
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for first in range(len(whole) - len(plain) + 1):
        if whole[first : first + len(plain)] == plain:
            return whole[:first]
    raise DataError(
        expected="a tokenizer that puts special tokens around a text and leaves the text as it is",
        got=f"{type(tokenizer).__name__}, to which 'a' is {plain} without them and {whole} with them",
        fix="Use the tokenizer that belongs to the model.",
    )


def check_fast(tokenizer) -> None:
    """Refuse a tokenizer that is not a fast one.

    Raises:
        DataError: it is a slow one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            expected="a fast tokenizer",
            got=type(tokenizer).__name__,
            fix="Load it with `AutoTokenizer`, or convert it with `tokenizers`.",
        )


class Documents(list[torch.Tensor]):
    """Whole documents as LongTensors `[tokens]`, and what stands before each of them.

    Args:
        documents: ids, each with the beginning or without it.
        beginning: the ids that the tokenizer puts before a text.
    """

    def __init__(self, documents: Iterable[torch.Tensor], beginning: Iterable[int]) -> None:
        super().__init__(documents)
        self.beginning = list(beginning)

    @property
    def texts(self) -> list[torch.Tensor]:
        """The documents without their beginning."""
        count = len(self.beginning)
        return [d[count:] if d[:count].tolist() == self.beginning else d for d in self]


def encode_whole(
    tokenizer, documents: Iterable[str], *, progress: bool, characters: int | None
) -> Iterator[list[int]]:
    """Yield the ids of each document, without special tokens around it.

    Args:
        tokenizer: a fast tokenizer of `transformers`.
        documents: the texts.
        progress: show a bar, in characters.
        characters: about how many there are, for the bar.
    """
    whole: list[int] = []
    parts = encode_documents(tokenizer, documents, progress=progress, characters=characters)
    with closing(parts):
        for ids, ended in parts:
            whole += ids
            if ended:
                yield whole
                whole = []


def encode_documents(
    tokenizer, documents: Iterable[str], *, progress: bool, characters: int | None
) -> Iterator[tuple[list[int], bool]]:
    """The same in parts, of which a long document has several: ids, and whether it ends with them."""
    with progress_bar(
        desc="tokenising", total=characters, unit="char", unit_scale=True, shown=progress
    ) as bar:
        for batch in _batches(documents):
            length = sum(map(len, batch))
            yield from encode_together(tokenizer, batch)
            bar.update(length)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents by the batch of so many characters, or one that has more."""
    batch: list[str] = []
    characters = 0
    for text in documents:
        if batch and characters + len(text) > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
        del text
    if batch:
        yield batch
