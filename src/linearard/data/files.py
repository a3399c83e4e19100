"""Documents out of local files: plain text, JSON lines, Parquet."""

from __future__ import annotations

import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from linearard.errors import DataError

PLAIN = (".txt", ".md", ".rst", ".py")
SUFFIXES = (*PLAIN, ".jsonl", ".jsonl.gz", ".parquet")
_KINDS = ", ".join(SUFFIXES)


def find_files(spec: str) -> list[Path] | None:
    """The files that a path, folder or glob names, sorted; None when it names nothing that exists.

    A folder is searched at every depth. Raises DataError when what exists is of no known kind.
    """
    path = Path(os.path.expanduser(spec))  # unlike Path.expanduser, leaves an unknown ~user alone
    if path.is_file():
        found, readable = [path], _readable([path])
    elif path.is_dir():
        found = [path]
        readable = _readable(path.rglob("*"))
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
        readable = _readable(found)
    if not found:
        return None
    if not readable:
        raise DataError(
            expected=f"text files ({_KINDS})",
            got=f"none at {spec!r}",
            fix="Name a file of one of these kinds, or a folder that holds some.",
        )
    return readable


def _readable(paths) -> list[Path]:
    return sorted({path.resolve() for path in paths if _is_text(path)})


def _is_text(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def read_file(path: Path, column: str) -> Iterator[str]:
    """Yield the documents of one file: the whole of a text file, or one for each line or row.

    Raises DataError when the file is empty, cannot be decoded, or lacks the column. An empty Python
    file is no mistake (it marks a package) and has no document.
    """
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            documents = _parquet(path, column)
        elif name.endswith((".jsonl", ".jsonl.gz")):
            documents = _json_lines(path, column)
        else:
            documents = _text(path)
        empty = True
        for document in documents:
            empty = False
            yield document
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            expected="a readable file",
            got=f"{path}: {error}",
            fix="Check the file's permissions, or write it again if it is damaged.",
        ) from error
    if empty and not name.endswith(".py"):
        raise DataError(
            expected="text in every file",
            got=f"the empty file {path}",
            fix="Remove the file, or name the others with a glob.",
        )


def _decode(data: bytes, path: Path, offset: int = 0) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            expected="UTF-8 text",
            got=f"byte 0x{data[error.start]:02x} at offset {offset + error.start} of {path}",
            fix=f"Convert the file to UTF-8, for example with `iconv -t UTF-8 {path.name}`.",
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _text(path: Path) -> Iterator[str]:
    text = _decode(path.read_bytes(), path)
    if text.strip():
        yield text


def _json_lines(path: Path, column: str) -> Iterator[str]:
    offset = 0
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            text = _decode(line, path, offset)
            offset += len(line)
            if text.strip():
                yield _json_text(text, column, f"{path}:{number}")


def _json_text(line: str, column: str, place: str) -> str:
    try:
        row = json.loads(line)
        if isinstance(row, dict):
            return row_text(row, column, place)
        problem = f"a {type(row).__name__}"
    except json.JSONDecodeError as error:
        problem = f"{error.msg} in column {error.colno}"
    raise DataError(
        expected="a JSON object on every line",
        got=f"{problem} at {place}",
        fix="Write one object a line, with the text under one key.",
    )


def row_text(row: dict, column: str, place: str) -> str:
    """The text of one row; an absent value (null) is an empty document."""
    text = row.get(column, 0)
    if text is None:
        return ""
    if isinstance(text, str):
        return text
    got = f"a {type(text).__name__} there" if column in row else f"keys {', '.join(row)}"
    raise DataError(
        expected=f"text under {column!r} at {place}",
        got=got,
        fix="Set `text_column` to the key that holds the text.",
    )


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            columns = table.schema_arrow.names
            if column not in columns:
                raise DataError(
                    expected=f"a column {column!r} in {path}",
                    got=f"columns {', '.join(columns)}",
                    fix="Set `text_column` to the column that holds the text.",
                )
            number = 0
            # Small batches: one row may be a whole book.
            for batch in table.iter_batches(batch_size=64, columns=[column]):
                for row in batch.to_pylist():
                    yield row_text(row, column, f"{path} row {number}")
                    number += 1
    except pa.ArrowInvalid as error:
        raise DataError(
            expected="a Parquet file",
            got=f"{path}: {error}",
            fix="Write the file again, or leave it out.",
        ) from error
