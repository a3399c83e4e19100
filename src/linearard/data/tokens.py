"""Documents to token ids: one way for the blocks and for whole documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator

from linearard.errors import DataError

_BATCH_CHARACTERS = 16_000_000  # some thirty books: the tokenizer takes a document a core


def tokenizer_hash(tokenizer) -> str:
    """A hash of the tokenizer's serialised form."""
    form = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):  # left over from the last call, not used here
        form.pop(state, None)
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps([form, special]).encode()).hexdigest()


def beginning(tokenizer) -> list[int]:
    """The token that the tokenizer puts before every text: [bos_token_id], or nothing.

    Raises:
        DataError: it is not a fast tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            expected="a fast tokenizer",
            got=type(tokenizer).__name__,
            fix="Load it with `AutoTokenizer`, or convert it with `tokenizers`.",
        )
    first = tokenizer("a")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def encode_documents(
    tokenizer, documents: Iterable[str], *, progress: bool, characters: int | None
) -> Iterator[list[int]]:
    """Yield the ids of each document, without special tokens around it.

    Args:
        tokenizer: a fast tokenizer of `transformers`.
        documents: the texts.
        progress: show a bar, in characters.
        characters: about how many there are, for the bar.
    """
    from tqdm import tqdm

    with tqdm(
        desc="tokenising", total=characters, unit="char", unit_scale=True, disable=not progress
    ) as bar:
        for batch in _batches(documents):
            # `verbose=False`: nothing here is fed to the model in one piece, so its longest input
            # does not matter.
            yield from tokenizer(
                batch, add_special_tokens=False, return_attention_mask=False, verbose=False
            )["input_ids"]
            bar.update(sum(map(len, batch)))


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
