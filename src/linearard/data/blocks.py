"""Blocks of tokens of one length, and whole documents for evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from linearard.data.cache import cached_blocks
from linearard.data.config import DataConfig, is_integer, require
from linearard.data.sources import Source, open_split
from linearard.data.tokens import beginning, encode_documents, tokenizer_hash
from linearard.errors import DataError

_FORMAT = 1  # raise it when the same text would be cut in another way
_SURPLUS = 4  # from a stream, shuffle among this many times the blocks that are asked for


class BlockDataset(torch.utils.data.Dataset):
    """Blocks of `block_size` tokens, read from a memory-mapped file.

    An item is {"input_ids": LongTensor [block_size]}. It pickles as a path, not as its data.

    Args:
        path: a .npy file of shape [blocks, block_size], of any integer dtype.
        order: rows of the file to use, in this order.
        fingerprint: a hash of the tokens in that order: equal wherever and whenever the same
            blocks are built.
    """

    def __init__(self, path: Path, order: np.ndarray, fingerprint: str) -> None:
        self._path, self._order, self.fingerprint = path, order, fingerprint
        self._blocks = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        block = self._blocks[self._order[index]]
        return {"input_ids": torch.from_numpy(block.astype(np.int64))}

    def __reduce__(self):
        return BlockDataset, (self._path, self._order, self.fingerprint)

    @property
    def tokens(self) -> int:
        """How many tokens all blocks hold together."""
        return len(self) * self._blocks.shape[1]


def token_blocks(
    config: DataConfig,
    tokenizer,
    block_size: int,
    *,
    split: str,
    count: int | None,
    progress: bool = True,
) -> BlockDataset:
    """Blocks of exactly `block_size` tokens, in an order drawn with `config.seed`.

    A document is cut into consecutive blocks and its tail is dropped; with `config.pack` all
    documents form one sequence, joined with the end-of-text token, and only the last tail is
    dropped. Where the tokenizer puts a BOS token before a text, every block begins with it and
    holds `block_size - 1` tokens of text. The blocks are cached under `config.cache_path`; a
    hub data set is known there by its name and split, not by its revision.

    Args:
        config: the text, and how to cut it.
        tokenizer: a fast tokenizer of `transformers`.
        block_size: tokens a block, BOS included; at least 2.
        split: "train" or "validation".
        count: how many blocks, drawn from all documents; None for all. A hub data set that is
            streamed is read until there are 4 x `count` blocks to draw from.
        progress: show a bar while tokenising.

    Raises:
        RecipeError: an argument is out of range.
        DataError: the text is missing, unreadable or too short, or gives too few blocks.
    """
    fix = "Give a number of tokens such as 2048."
    require(
        is_integer(block_size, 2), "block_size", "a whole number of at least 2", block_size, fix
    )
    right = count is None or is_integer(count, 1)
    require(right, "count", "a whole number of at least 1, or absent", count, "Ask for a block.")
    source = open_split(config, split)
    limit = _SURPLUS * count if source.lazy and count is not None else None
    decides = [_FORMAT, source.identity, tokenizer_hash(tokenizer), block_size, config.pack, limit]
    key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]

    def build() -> Iterator[np.ndarray]:
        return _cut(source, split, tokenizer, block_size, config.pack, limit, progress)

    path = cached_blocks(config.cache_path, key, build)
    available = len(np.load(path, mmap_mode="r"))
    if count is not None and available < count:
        raise DataError(
            expected=f"{count} blocks of {block_size} tokens for {split}",
            got=f"{available} in {source.name!r}",
            fix="Ask for fewer blocks, give more text, or use a smaller window"
            + ("." if config.pack else " or `pack: true`."),
        )
    order = np.random.default_rng(config.seed).permutation(available)[:count]
    content = path.stem.partition("-")[2]  # the hash of all blocks
    decides = f"{content} {block_size} ".encode() + order.astype("<i8").tobytes()
    return BlockDataset(path, order, hashlib.sha256(decides).hexdigest())


def _cut(
    source: Source,
    split: str,
    tokenizer,
    block_size: int,
    pack: bool,
    limit: int | None,
    progress: bool,
) -> Iterator[np.ndarray]:
    """Yield arrays [n, block_size], at least one, until `limit` blocks are cut."""
    if pack and tokenizer.eos_token_id is None:
        raise DataError(
            expected="a tokenizer with an end-of-text token, to join documents",
            got="none",
            fix="Set `pack: false`, or give the tokenizer an `eos_token`.",
        )
    start = beginning(tokenizer)
    room = block_size - len(start)
    dtype = np.uint16 if max(tokenizer.get_vocab().values()) < 2**16 else np.int32
    blocks, pending, longest = 0, [], None
    with closing(_encoded(source, tokenizer, progress)) as documents:
        for ids in documents:
            joined = pack and longest is not None
            pending = [*pending, tokenizer.eos_token_id, *ids] if joined else ids
            longest = max(longest or 0, len(ids))
            rows = len(pending) // room
            if rows:
                array = np.array(pending[: rows * room], dtype).reshape(rows, room)
                yield np.insert(array, 0, start, axis=1) if start else array
                pending = pending[rows * room :]
                blocks += rows
            if limit is not None and blocks >= limit:
                break
    if longest is None:
        raise _no_documents(source, split)
    if not blocks:
        found = f"{len(pending)} in all" if pack else f"a longest document of {longest} tokens"
        raise DataError(
            expected=f"documents of at least {room} tokens for windows of {block_size}",
            got=f"{found} in {source.name!r} ({split})",
            fix="Use a smaller window, or "
            + ("give more text." if pack else "join documents with `pack: true`."),
        )


def token_documents(
    config: DataConfig,
    tokenizer,
    *,
    split: str,
    limit_tokens: int | None,
    min_tokens: int,
    progress: bool = False,
) -> list[torch.Tensor]:
    """Whole documents as LongTensors [tokens], in the source's order, not cached.

    Each begins with BOS where the tokenizer puts one before a text.

    Args:
        config: the text.
        tokenizer: a fast tokenizer of `transformers`.
        split: "train" or "validation".
        limit_tokens: stop after the document that brings the sum to this; None for all.
        min_tokens: leave shorter documents out.
        progress: show a bar while tokenising.

    Raises:
        DataError: the text is missing or unreadable, or no document is long enough.
    """
    source = open_split(config, split)
    start = beginning(tokenizer)
    kept, total, longest = [], 0, None
    with closing(_encoded(source, tokenizer, progress)) as documents:
        for ids in documents:
            document = torch.tensor([*start, *ids])
            longest = max(longest or 0, len(document))
            if len(document) < min_tokens:
                continue
            kept.append(document)
            total += len(document)
            if limit_tokens is not None and total >= limit_tokens:
                break
    if longest is None:
        raise _no_documents(source, split)
    if not kept:
        raise DataError(
            expected=f"documents of at least {min_tokens} tokens",
            got=f"a longest document of {longest} tokens in {source.name!r} ({split})",
            fix="Ask for shorter documents, or name text with longer ones.",
        )
    return kept


def _encoded(source: Source, tokenizer, progress: bool) -> Iterator[list[int]]:
    return encode_documents(
        tokenizer, source.read(), progress=progress, characters=source.characters
    )


def _no_documents(source: Source, split: str) -> DataError:
    return DataError(
        expected=f"{split} documents",
        got=f"none in {source.name!r}",
        fix="Name text that holds some; where a share of few documents is held out, set "
        "`validation` or raise `validation_fraction`.",
    )
