"""Records out of a data set of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator

from linearard.data.config import DataConfig
from linearard.data.rows import Record, documents
from linearard.data.source import Source
from linearard.errors import DataError

# A path has a drive, a glob, a leading . / or ~, two separators, or an extension.
_LOOKS_LIKE_PATH = re.compile(r"^[./~]|[\\*?\[]|/.*/|\.[A-Za-z][A-Za-z0-9]*$")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")  # without an owner it may name a reader of the files here


def hub_source(spec: str, split: str, config: DataConfig) -> Source:
    """The documents of one split of a data set.

    Args:
        spec: `owner/name`, or `owner/name:config_name`.
        split: of it.
        config: how it is read.

    Raises:
        DataError: it is the name of no data set, but looks like a path.
    """
    name, _, config_name = spec.partition(":")
    if _LOOKS_LIKE_PATH.search(name) or not _HUB_ID.fullmatch(name):
        raise DataError(
            expected="an existing file, folder or glob",
            got=f"{spec!r}, which matches nothing",
            fix="Check the path; a hub data set is written `owner/name`.",
        )

    def read() -> Iterator[str]:
        records = read_hub(name, config_name or None, split, streaming=config.streaming)
        return documents(records, config.text_column)

    identity = ["hub", name, config_name, split]
    parts = frozenset({":".join(identity)})
    return Source(spec, read, parts, identity, lazy=config.streaming)


def read_hub(
    name: str, config_name: str | None, split: str, *, streaming: bool
) -> Iterator[Record]:
    """Yield the rows of one split, in the data set's own order.

    `name` is whatever `datasets.load_dataset` takes. Whatever fails there (no such data set,
    configuration or split; no network) raises DataError.
    """
    import datasets

    place = f"{name}:{config_name}" if config_name else name
    try:
        rows = datasets.load_dataset(name, config_name, split=split, streaming=streaming)
        for number, row in enumerate(rows):
            yield row, f"{place} [{split}] row {number}"
    except Exception as error:  # the library raises many kinds, of its own and of its backends
        raise DataError(
            expected=f"split {split!r} of the hub data set {place!r} (no such local path exists)",
            got=f"{type(error).__name__}: {' '.join(str(error).split())}",
            fix="Check the name, the configuration, the split and the network, or name local "
            "files instead.",
        ) from error
