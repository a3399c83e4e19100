"""A source's documents as token ids, tokenised once and kept in the cache.

The ids of all documents stand in one file, one after another, each followed by an end mark: the largest
number of the file's type, which no token has. Windows of every size, packed or not, and whole documents
are cut from the same file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from linearard.data.cache import cached_array
from linearard.data.chat import as_text
from linearard.data.source import Source
from linearard.data.tokens import beginning, encode_documents, tokenizer_hash

_FORMAT = 2  # raise it when the same text would be written in another way


@dataclass(frozen=True)
class TokenStream:
    """Documents as ids in a file of shape [ids and end marks, 1]."""

    path: Path

    @cached_property
    def ids(self) -> np.ndarray:
        """All ids and end marks, memory-mapped [tokens]."""
        return np.load(self.path, mmap_mode="r")[:, 0]

    @property
    def end_mark(self) -> int:
        """What stands behind each document."""
        return int(np.iinfo(self.ids.dtype).max)

    @property
    def content(self) -> str:
        """A hash of everything in the file."""
        return self.path.stem.rpartition("-")[2]

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """First position and number of tokens of each document, int64 [documents] each."""
        ends = np.flatnonzero(self.ids == self.end_mark)
        starts = np.concatenate(([0], ends[:-1] + 1)) if len(ends) else ends
        return starts, ends - starts


def token_stream(
    source: Source,
    tokenizer,
    folder: Path,
    *,
    room: int,
    needed: int | None,
    progress: bool,
) -> TokenStream | None:
    """The stream of a source, from the cache if it is there; None when there are no documents.

    Args:
        source: the documents.
        tokenizer: a fast tokenizer of `transformers`.
        folder: the cache.
        room, needed: a source that costs a network is read until its documents hold `needed` pieces
            of `room` tokens; None: whole.
        progress: show a bar while tokenising.
    """
    limited = source.lazy and needed is not None
    decides = [_FORMAT, source.identity, tokenizer_hash(tokenizer)]
    if not source.plain and (template := getattr(tokenizer, "chat_template", None)):
        decides.append(template)  # which conversations are rendered with
    if limited:
        decides.append([room, needed])
    key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]
    dtype = np.uint16 if max(tokenizer.get_vocab().values()) < 2**16 - 1 else np.int32
    mark = np.iinfo(dtype).max

    before = tokenizer.decode(beginning(tokenizer))

    def build() -> Iterator[np.ndarray]:
        found = length = 0
        texts = (as_text(tokenizer, text, before) for text in source.read())
        parts = encode_documents(tokenizer, texts, progress=progress, characters=source.characters)
        with closing(parts):
            for ids, ended in parts:
                if ids or ended:
                    yield np.array([*ids, mark] if ended else ids, dtype)[:, None]
                length += len(ids)
                if ended:
                    found += length // room
                    length = 0
                    if limited and found >= needed:
                        break

    path = cached_array(folder, key, build)
    return None if path is None else TokenStream(path)
