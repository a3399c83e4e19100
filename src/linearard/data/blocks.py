"""Blocks of tokens of one length, and whole documents for evaluation."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from linearard.data.config import DataConfig
from linearard.data.repeated_passages import repeat_passages
from linearard.data.source import Source
from linearard.data.sources import open_split
from linearard.data.streams import TokenStream, token_stream
from linearard.data.tokens import Documents, beginning, check_fast
from linearard.errors import DataError
from linearard.fields import check_value, refuse, whole

_SURPLUS = 4  # from a hub stream, shuffle among this many times the blocks that are asked for


class BlockDataset(torch.utils.data.Dataset):
    """Blocks of one size, cut from a memory-mapped stream of tokens.

    An item is {"input_ids": LongTensor [block_size]}; with `recall` also {"repeated": BoolTensor
    [block_size]}, the tokens that looking back foretells. It pickles as a path, not as its data.

    Args:
        stream: the documents.
        starts: where each block begins in the stream, in this order.
        block_size: tokens a block, `begin` included.
        begin: ids before every block: what the tokenizer puts before a text.
        joint: the id that stands for the end of a document inside a block (packed text), or None.
        fingerprint: a hash of the tokens in that order: equal wherever and whenever the same
            blocks are built.
        recall, opening: share of each block that repeats earlier passages of it, and how near its
            opening they stood; see `repeat_passages`.
    """

    def __init__(
        self,
        stream: TokenStream,
        starts: np.ndarray,
        block_size: int,
        begin: list[int],
        joint: int | None,
        fingerprint: str,
        recall: float = 0.0,
        opening: float = 2.0,
    ) -> None:
        self._stream, self._starts, self._size = stream, starts, block_size
        self._begin, self._joint, self.fingerprint = begin, joint, fingerprint
        self._recall, self._opening = recall, opening

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = self._starts[index]
        text = self._stream.ids[start : start + self._size - len(self._begin)].astype(np.int64)
        if self._joint is not None:
            text[text == self._stream.end_mark] = self._joint
        if not self._recall:
            return {"input_ids": self._with_beginning(text)}
        text, repeated = repeat_passages(text, self._recall, seed=int(start), opening=self._opening)
        return {
            "input_ids": self._with_beginning(text),
            "repeated": torch.cat(
                (torch.zeros(len(self._begin), dtype=torch.bool), torch.from_numpy(repeated))
            ),
        }

    def _with_beginning(self, text: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.concatenate((self._begin, text)).astype(np.int64))

    def __reduce__(self) -> tuple[Any, ...]:
        stream = TokenStream(self._stream.path)
        parts = (self._starts, self._size, self._begin, self._joint, self.fingerprint)
        return BlockDataset, (stream, *parts, self._recall, self._opening)

    @property
    def tokens(self) -> int:
        """How many tokens all blocks hold together."""
        return len(self) * self._size


def token_blocks(
    config: DataConfig,
    tokenizer: Any,
    block_size: int,
    *,
    split: str,
    count: int | None,
    progress: bool = True,
) -> BlockDataset:
    """Blocks of exactly `block_size` tokens, in an order drawn with `config.seed`.

    A document is cut into consecutive blocks and its tail is dropped; with `config.pack` all
    documents form one sequence, joined with the end-of-text token, and only the last tail is
    dropped. Every block begins with what the tokenizer puts before a text, such as a BOS token,
    and holds so much less of the text. The tokenised text is cached under `config.cache_path`,
    once for windows of every size; a hub data set is known there by its name and split, not by
    its revision.

    Args:
        config: the text, and how to cut it.
        tokenizer: a fast tokenizer of `transformers`.
        block_size: tokens a block, its beginning included; at least 2.
        split: "train" or "validation".
        count: how many blocks, drawn from all documents; None for all. A hub data set that is
            streamed is read until there are 4 x `count` blocks to draw from.
        progress: show a bar while tokenising.

    Raises:
        RecipeError: an argument is out of range.
        DataError: the text is missing, unreadable or too short, or gives too few blocks.
    """
    check_value(block_size, whole(2), "block_size")
    check_value(count, whole(1).or_null(), "count")
    source = open_split(config, split)
    check_fast(tokenizer)
    begin = beginning(tokenizer)
    joint = tokenizer.eos_token_id if config.pack else None
    if config.pack and joint is None:
        raise DataError(
            expected="a tokenizer with an end-of-text token, to join documents",
            got="none",
            fix="Set `pack: false`, or give the tokenizer an `eos_token`.",
        )
    room = block_size - len(begin)
    if room < 1:
        least = f"more than the {len(begin)} tokens that stand before a text"
        refuse("block_size", least, block_size, "Use longer windows.")
    stream = token_stream(
        source,
        tokenizer,
        config.cache_path,
        room=1 if config.pack else room,
        needed=None if count is None else _SURPLUS * count * (room if config.pack else 1),
        progress=progress,
    )
    if stream is None:
        raise _no_documents(source, split)
    starts = _cut(stream, room, config.pack)
    if not len(starts):
        raise _too_short(stream, source, split, block_size, room, config.pack)
    if count is not None and len(starts) < count:
        raise DataError(
            expected=f"{count} blocks of {block_size} tokens for {split}",
            got=f"{len(starts)} in {source.name!r}",
            fix="Ask for fewer blocks, give more text, or use a smaller window"
            + ("." if config.pack else " or `pack: true`."),
        )
    starts = starts[np.random.default_rng(config.seed).permutation(len(starts))[:count]]
    recall, opening = config.repeated_passages, config.repeated_opening
    # at 2, what it was before there was a choice: runs of that time resume
    repeats = f"repeats {recall} {f'from {opening} ' if opening != 2 else ''}" if recall else ""
    decides = f"{stream.content} {block_size} {begin} {joint} {repeats}".encode()
    fingerprint = hashlib.sha256(decides + starts.astype("<i8").tobytes()).hexdigest()
    return BlockDataset(stream, starts, block_size, begin, joint, fingerprint, recall, opening)


def _cut(stream: TokenStream, room: int, pack: bool) -> np.ndarray:
    """Where blocks of `room` text tokens begin, int64 [blocks]."""
    if pack:
        # The end mark of the last document joins nothing.
        return np.arange((len(stream.ids) - 1) // room) * room
    starts, lengths = stream.bounds
    blocks = lengths // room
    first = np.repeat(np.cumsum(blocks) - blocks, blocks)
    return np.repeat(starts, blocks) + (np.arange(blocks.sum()) - first) * room


def _too_short(
    stream: TokenStream, source: Source, split: str, block_size: int, room: int, pack: bool
) -> DataError:
    longest = stream.bounds[1].max()
    found = f"{len(stream.ids) - 1} in all" if pack else f"a longest document of {longest} tokens"
    return DataError(
        expected=f"documents of at least {room} tokens for windows of {block_size}",
        got=f"{found} in {source.name!r} ({split})",
        fix="Use a smaller window, or "
        + ("give more text." if pack else "join documents with `pack: true`."),
    )


def token_documents(
    config: DataConfig,
    tokenizer: Any,
    *,
    split: str,
    min_tokens: int,
    progress: bool = False,
) -> Documents:
    """Whole documents as LongTensors [tokens], in the source's order.

    Each begins with what the tokenizer puts before a text, such as a BOS token.

    Args:
        config: the text.
        tokenizer: a fast tokenizer of `transformers`.
        split: "train" or "validation".
        min_tokens: leave shorter documents out.
        progress: show a bar while tokenising.

    Raises:
        DataError: the text is missing or unreadable, or no document is long enough.
    """
    source = open_split(config, split)
    check_fast(tokenizer)
    start = beginning(tokenizer)
    stream = token_stream(
        source,
        tokenizer,
        config.cache_path,
        room=max(min_tokens, 1),
        needed=None,
        progress=progress,
    )
    if stream is None:
        raise _no_documents(source, split)
    kept = Documents([], start)
    for first, length in zip(*stream.bounds, strict=True):
        if length + len(start) < min_tokens:
            continue
        ids = stream.ids[first : first + length].astype(np.int64)
        kept.append(torch.from_numpy(np.concatenate((np.array(start, np.int64), ids))))
    if not kept:
        raise DataError(
            expected=f"documents of at least {min_tokens} tokens",
            got=f"a longest document of {stream.bounds[1].max() + len(start)} tokens in "
            f"{source.name!r} ({split})",
            fix="Ask for shorter documents, or name text with longer ones.",
        )
    return kept


def _no_documents(source: Source, split: str) -> DataError:
    return DataError(
        expected=f"{split} documents",
        got=f"none in {source.name!r}",
        fix="Name text that holds some; where a share of few documents is held out, set "
        "`validation` or raise `validation_fraction`.",
    )
