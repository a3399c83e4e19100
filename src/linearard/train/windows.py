"""The windows a stage reads, of one part or of several in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from linearard.data import BlockDataset
from linearard.errors import DataError
from linearard.train.self_generated_text import SelfGeneratedBlocks


class StageWindows(Dataset):
    """The windows of a stage of one part, numbered, so that a bad batch can be named.

    Args:
        blocks: the windows.
    """

    def __init__(self, blocks: BlockDataset | SelfGeneratedBlocks) -> None:
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._blocks[index], "block": index}

    def window(self, number: int) -> Tensor:
        """Tokens of the window of this number, int64 `[window]`."""
        return self._blocks[number]["input_ids"]

    @property
    def fingerprint(self) -> str:
        """A hash of everything that is read."""
        return self._blocks.fingerprint

    def tokens_read(self, items: int) -> int:
        """Tokens of this many windows."""
        return items * (self._blocks.tokens // len(self._blocks))


class InterleavedParts(Dataset):
    """Batches of several parts, spread evenly over the stage.

    An item is a whole batch of one part: `{"input_ids": int64 [batch, window], …, "part": name,
    "block": int64 [batch]}`; windows are numbered through all parts.

    Args:
        parts: by name, the windows and how many make a batch. Windows that fill no batch are left out.
        processes: as many batches of one part follow each other, one for each process.

    Raises:
        DataError: a part has too few windows for one batch in every process.
    """

    def __init__(
        self, parts: Mapping[str, tuple[BlockDataset | SelfGeneratedBlocks, int]], processes: int
    ) -> None:
        self._parts, offset = dict(parts), 0
        self._offsets: dict[str, int] = {}
        every: dict[str, int] = {}
        for name, (blocks, size) in self._parts.items():
            rounds = len(blocks) // (size * processes)
            if not rounds:
                raise DataError(
                    expected=f"at least {size * processes} windows in part {name!r}, a batch of {size} "
                    f"for each of {processes} processes",
                    got=str(len(blocks)),
                    fix="Raise its sequences or lower its batch_size.",
                )
            every[name] = rounds
            self._offsets[name] = offset
            offset += len(blocks)
        self._order = [
            (name, (turn * processes + process) * self._parts[name][1])
            for name, turn in interleaved(every)
            for process in range(processes)
        ]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, first = self._order[index]
        blocks, size = self._parts[name]
        rows = [blocks[first + row] for row in range(size)]
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        numbers = self._offsets[name] + first + torch.arange(size)
        return {**batch, "part": name, "block": numbers}

    def window(self, number: int) -> Tensor:
        """Tokens of the window of this number, int64 `[window]`."""
        name = max(
            (name for name, offset in self._offsets.items() if offset <= number),
            key=self._offsets.__getitem__,
        )
        return self._parts[name][0][number - self._offsets[name]]["input_ids"]

    @property
    def fingerprint(self) -> str:
        """A hash of everything that is read, and in which order."""
        parts = [(name, blocks.fingerprint, size) for name, (blocks, size) in self._parts.items()]
        return hashlib.sha256(repr((parts, self._order)).encode()).hexdigest()

    def tokens_read(self, items: int) -> int:
        """Tokens of the first so many batches."""
        tokens = {
            name: size * (blocks.tokens // len(blocks))
            for name, (blocks, size) in self._parts.items()
        }
        return int(np.sum([tokens[name] for name, _ in self._order[:items]]))


def interleaved(rounds: Mapping[str, int]) -> list[tuple[str, int]]:
    """Part and turn of every step of a stage, with the parts evenly among one another.

    Args:
        rounds: how many steps each part has.
    """
    turns = [((t + 0.5) / count, part, t) for part, count in rounds.items() for t in range(count)]
    return [(part, turn) for _, part, turn in sorted(turns)]


def the_only_item(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate batches that are whole already."""
    (item,) = items
    return item


def check_datasets(parts: bool, train: Dataset, evaluation: Dataset | None) -> None:
    """Refuse data sets of another kind than `args.parts` asks for."""
    if parts != isinstance(train, InterleavedParts) or (parts and evaluation is not None):
        also = "" if evaluation is None else " and an eval_dataset"
        raise DataError(
            expected="InterleavedParts alone for args.parts" if parts else "windows of one part",
            got=f"a train_dataset of {type(train).__name__}{also}",
            fix="Let args.parts and the data sets fit together.",
        )


def check_window(window: int, dataset: Dataset) -> None:
    """Refuse windows, by their first, that are not of this many tokens."""
    length = len(dataset[0]["input_ids"]) if len(dataset) else window
    if length != window:
        raise DataError(
            expected=f"windows of {window} tokens, as args.window says",
            got=f"a train_dataset whose first has {length}",
            fix=f"Give RestorationConfig(window={length}, …), or cut the text into windows of {window}.",
        )


def numbered(dataset: Dataset) -> StageWindows | InterleavedParts:
    """The data set with numbered windows, so that a bad batch can be named."""
    done = isinstance(dataset, StageWindows | InterleavedParts)
    return dataset if done else StageWindows(dataset)
