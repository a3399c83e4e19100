"""Documents out of a data set of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator

from linearard.data.rows import row_document
from linearard.errors import DataError


def read_hub(
    name: str, config_name: str | None, split: str, *, streaming: bool, column: str
) -> Iterator[str]:
    """Yield the rows of one split as documents, in the data set's own order.

    `name` is whatever `datasets.load_dataset` takes. Whatever fails there (no such data set,
    configuration or split; no network) raises DataError.
    """
    import datasets

    place = f"{name}:{config_name}" if config_name else name
    try:
        rows = datasets.load_dataset(name, config_name, split=split, streaming=streaming)
        for number, row in enumerate(rows):
            yield row_document(row, column, f"{place} [{split}] row {number}")
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds, of its own and of its backends
        raise DataError(
            expected=f"split {split!r} of the hub data set {place!r} (no such local path exists)",
            got=f"{type(error).__name__}: {' '.join(str(error).split())}",
            fix="Check the name, the configuration, the split and the network, or name local "
            "files instead.",
        ) from error
