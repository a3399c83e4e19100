"""Windows of text that the original model writes: planned without weights, cut once there are some."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from linearard.data import BlockDataset, DataConfig, token_blocks
from linearard.data.cache import cached_documents
from linearard.data.rows import whole_characters
from linearard.data.tokens import beginning, tokenizer_hash
from linearard.errors import DataError
from linearard.model import RestorableModel, is_packed
from linearard.model.shares import whole
from linearard.train.chat_template import chat_frame
from linearard.train.text_generation import Assignment, write_documents

_FORMAT = 3  # raise it when the same model would write in another way
#: Entries of a configuration that say where it came from, or what is hashed as tables.
_NOT_THE_MODEL = {
    "_name_or_path",
    "architectures",
    "dtype",
    "max_position_embeddings",
    "rope_parameters",
    "rope_scaling",
    "torch_dtype",
    "transformers_version",
}


class SelfGeneratedBlocks(Dataset):
    """Like a `BlockDataset` of the documents of `self`, which `write` must have been called for.

    Every part of a run has documents of its own, as many as its windows hold: two parts with one
    seed never read the same text.

    Args:
        data: how to write and cut; its seed is the part's.
        tokenizer: the model's, a fast tokenizer of `transformers`.
        window: tokens of a block.
        count: how many blocks.
        native: the window that the original reads and writes in.

    Raises:
        DataError: the tokenizer lacks the tokens that documents stand between or a chat template that
            can be used, or the start has no token or leaves no room.
    """

    def __init__(
        self, data: DataConfig, tokenizer: Any, window: int, count: int, native: int
    ) -> None:
        self._data, self._window, self._count = data, window, count
        start, end = _borders(data.self_start, tokenizer)
        frame, asked = None, "self_start"
        if data.self_chat:
            frame, asked = chat_frame(tokenizer), "self_chat: a beginning"
            start = frame.start
        if not 0 < len(start) < native:
            raise DataError(
                expected=f"data.{asked} of 1 to {native - 1} tokens, in the native window",
                got=f"{len(start)} tokens",
                fix="Give what stands before a document in the model's training text, such as one token.",
            )
        tokens = count * (window - len(beginning(tokenizer))) + 1
        self._assignment = Assignment(start, end, tokens, data.seed, frame)
        self._blocks: BlockDataset | None = None

    def write(self, restorable: RestorableModel, *, progress: bool) -> None:
        """Let the original write the text, unless it is in the cache already, and cut it.

        Of several processes that share the cache, one writes and the others wait.

        Args:
            restorable: the model; none of its views and random numbers change.
            progress: show a bar.

        Raises:
            DataError: the model writes nothing, or the cache cannot be written.
        """
        path = self._written(restorable, progress)
        data = dataclasses.replace(
            self._data,
            train=str(path),
            text_column="text",
            max_documents=None,  # a limit for other sources: here `count` is one
            validation_fraction=0.0,  # nothing of this is held out
            pack=True,  # documents are shorter than windows
        )
        tokenizer = restorable.tokenizer
        options = {"split": "train", "count": self._count, "progress": progress}
        self._blocks = token_blocks(data, tokenizer, self._window, **options)

    def _written(self, restorable: RestorableModel, progress: bool) -> Path:
        assignment = self._assignment
        tables = restorable.rope.tables("native").items()
        decides = [
            _FORMAT,
            _original_hash(restorable),
            [[str(kind), t.inv_freq.tolist(), t.attention_scaling] for kind, t in tables],
            tokenizer_hash(restorable.tokenizer),
            _decisive(assignment),
            assignment.length(restorable),
        ]
        digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
        folder, key = self._data.cache_path, f"self-{digest[:32]}"
        if restorable.sharded:
            return _written_together(folder, key, restorable, assignment, progress)
        return cached_documents(
            folder, key, lambda: write_documents(restorable, assignment, progress=progress)
        )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._blocks[index]

    @property
    def fingerprint(self) -> str:
        """See `BlockDataset`."""
        return self._blocks.fingerprint

    @property
    def tokens(self) -> int:
        """How many tokens all blocks hold together."""
        return self._count * self._window


def _written_together(
    folder: Path, key: str, restorable: RestorableModel, assignment: Assignment, progress: bool
) -> Path:
    """The file of a model that is divided among processes: the first writes what all of them compute."""
    told: list[Any] = [False]

    def documents() -> Iterator[str]:
        told[0] = True
        torch.distributed.broadcast_object_list(told, 0)
        yield from write_documents(restorable, assignment, progress=progress)

    path = None
    if torch.distributed.get_rank() == 0:
        path = cached_documents(folder, key, documents)
        if not told[0]:
            torch.distributed.broadcast_object_list(told, 0)
    else:
        torch.distributed.broadcast_object_list(told, 0)
        for _ in write_documents(restorable, assignment, progress=False) if told[0] else ():
            pass
    found = [path]
    torch.distributed.broadcast_object_list(found, 0)
    return Path(str(found[0]))


def _decisive(assignment: Assignment) -> list[Any]:
    """What decides the text, as JSON holds it; without a frame it is what it was before there were any."""
    decides = [assignment.start, assignment.end, assignment.tokens, assignment.seed]
    if assignment.frame is None:
        return decides
    around = dataclasses.asdict(assignment.frame) | {"control": sorted(assignment.frame.control)}
    return [*decides, around]


def _original_hash(restorable: RestorableModel) -> str:
    """Hash of all that decides what the original says, its rotations and its tokenizer apart.

    The model's own fingerprint is of a sample of the weights, which retrained embeddings can leave as it was.
    A pass over all of them takes a second for two billion. Where they are divided among processes, all must
    ask at once, and each weight is whole for a moment.
    """
    config = restorable.config.to_dict()
    settings = {key: value for key, value in config.items() if key not in _NOT_THE_MODEL}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    frozen = [(n, p) for n, p in restorable.model.named_parameters() if not p.requires_grad]
    # Buffers too: in direct training they hold the original's q, k and v, which are parameters where they are
    # divided among processes. Those of the rotary modules rotate the student now.
    originals = [(n, p) for n, p in frozen if ".original_" in n]
    frozen = [(n, p) for n, p in frozen if ".original_" not in n]
    for name, tensor in itertools.chain(frozen, restorable.model.named_buffers(), originals):
        if not name.endswith("inv_freq"):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            numbers = whole(tensor).contiguous().flatten().view(torch.uint8)
            digest.update(numbers.cpu().numpy())
    for module in filter(is_packed, restorable.model.modules()):
        digest.update(module.weight.quant_state.absmax.cpu().numpy())
    return digest.hexdigest()


def _borders(start: str | None, tokenizer: Any) -> tuple[tuple[int, ...], int]:
    """The ids that documents begin after, and the one that ends them."""
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if eos is None:
        raise DataError(
            expected="a tokenizer with an end-of-text token, for data.train: self",
            got="none",
            fix="Give the tokenizer an `eos_token`, or train on other text.",
        )
    begin = tuple(beginning(tokenizer))
    if start is None:
        return begin or (eos if bos is None else bos,), eos
    ids = tuple(
        tokenizer(whole_characters(start, "data.self_start"), add_special_tokens=False)["input_ids"]
    )
    added = tokenizer.added_tokens_decoder
    # A model of conversations has the end of a turn as its EOS, and goes on after it.
    separates = len(ids) == 1 and ids[0] != bos and ids[0] in added and added[ids[0]].special
    begun = ids[: len(begin)] == begin
    return ids if begun else begin + ids, ids[0] if separates else eos
