"""Records out of local files: plain text, JSON lines, JSON arrays, CSV, Parquet."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from linearard.data.chat import COLUMNS
from linearard.data.rows import Record, documents
from linearard.data.source import Source
from linearard.errors import DataError

_PLAIN = (".txt", ".md", ".rst", ".py")
_IN_FOLDERS = (*_PLAIN, ".jsonl", ".jsonl.gz", ".parquet")
_BY_NAME = (".json", ".csv")  # in folders such files are settings and notes as often as text
_KINDS = ", ".join((*_IN_FOLDERS, *_BY_NAME))


def local_source(spec: str, column: str) -> Source | None:
    """The documents of all files that a path, folder or glob names; None when it names nothing that exists.

    Args:
        spec: as the user wrote it.
        column: the key of records that holds the text.

    Raises:
        DataError: what exists is of no known kind; what cannot be read of it is found when it is read.
    """
    if (files := find_files(spec)) is None:
        return None
    status = [(path, path.stat()) for path in files]
    plain = all(path.suffix.lower() in _PLAIN for path in files)

    def read() -> Iterator[str]:
        records = itertools.chain.from_iterable(read_file(path, column) for path in files)
        return documents(records, column)

    return Source(
        spec,
        read,
        frozenset(map(str, files)),
        [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in status],
        characters=sum(stat.st_size for _, stat in status) if plain else None,
        plain=plain,
    )


def find_files(spec: str) -> list[Path] | None:
    """The files that a path, folder or glob names, sorted; None when it names nothing that exists.

    A folder is searched at every depth, but not for .json and .csv. Raises DataError when what exists is of
    no known kind.
    """
    path = Path(os.path.expanduser(spec))  # unlike Path.expanduser, leaves an unknown ~user alone
    try:
        if path.is_file():
            found, readable = [path], _readable([path])
        elif path.is_dir():
            found = [path]
            readable = _readable(path.rglob("*"), _IN_FOLDERS)
        else:
            found = [Path(name) for name in glob.glob(str(path), recursive=True)]
            readable = _readable(found)
    except OSError as error:  # no right to look, or gone while we do
        raise DataError(
            expected=f"files and folders at {spec!r} that can be listed",
            got=f"{error.strerror} ({error.filename})",
            fix="Mend that, or name the files with a glob.",
        ) from error
    if not found:
        return None
    if not readable:
        raise DataError(
            expected=f"text files ({_KINDS})",
            got=f"none at {spec!r}",
            fix="Name a file of one of these kinds, or a folder that holds some.",
        )
    return readable


def _readable(
    paths: Iterable[Path], kinds: tuple[str, ...] = (*_IN_FOLDERS, *_BY_NAME)
) -> list[Path]:
    found = (path for path in paths if path.name.lower().endswith(kinds) and path.is_file())
    return sorted({path.resolve() for path in found})


def read_file(path: Path, column: str) -> Iterator[Record]:
    """Yield what one file holds: the whole of a text file, or a record for each line or row.

    Raises DataError when the file is empty, cannot be decoded, or (Parquet) lacks the column. An empty
    Python file is no mistake (it marks a package) and has no record.
    """
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            records = _parquet(path, column)
        elif name.endswith((".jsonl", ".jsonl.gz")):
            records = _json_lines(path)
        elif name.endswith(".json"):
            records = _json_array(path)
        elif name.endswith(".csv"):
            records = _csv(path)
        else:
            records = _text(path)
        empty = True
        for record in records:
            empty = False
            yield record
            del record
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


def _text(path: Path) -> Iterator[Record]:
    text = _decode(path.read_bytes(), path)
    if text and not text.isspace():
        yield text, str(path)


def _json_lines(path: Path) -> Iterator[Record]:
    offset = 0
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rb") as lines:
        number = 0
        for line in lines:  # no `enumerate`, which keeps a line until it has the next
            number += 1  # noqa: SIM113
            text = _decode(line, path, offset)
            offset += len(line)
            if text and not text.isspace():
                del line  # one copy of a line of hundreds of megabytes is enough
                row = _json(text, f"{path}:{number}")
                del text
                yield row, f"{path}:{number}"
                del row


def _json(text: str, place: str) -> dict:
    try:
        row = json.loads(text)
        if isinstance(row, dict):
            return row
        problem = f"a {type(row).__name__}"
    except json.JSONDecodeError as error:
        problem = f"{error.msg} in column {error.colno}"
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, endless nesting
        problem = str(error)
    raise DataError(
        expected="a JSON object on every line",
        got=f"{problem} at {place}",
        fix="Write one object a line, with the text under one key.",
    )


def _json_array(path: Path) -> Iterator[Record]:
    text = _decode(path.read_bytes(), path)
    if not text or text.isspace():
        return
    try:
        rows = json.loads(text)
        problem = None if isinstance(rows, list) else f"a {type(rows).__name__}"
    except json.JSONDecodeError as error:
        problem = f"{error.msg} in line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError) as error:
        problem = str(error)
    if problem is None:
        wrong = next((n for n, row in enumerate(rows) if not isinstance(row, dict)), None)
        problem = None if wrong is None else f"a {type(rows[wrong]).__name__} as record {wrong}"
    if problem is not None:
        raise DataError(
            expected="one JSON array of objects in a .json file",
            got=f"{problem} of {path}",
            fix="Write the array, or name the file .jsonl where it has one object a line.",
        )
    for number, row in enumerate(rows):
        yield row, f"{path} record {number}"


def _csv(path: Path) -> Iterator[Record]:
    lines = io.StringIO(_decode(path.read_bytes(), path), newline="")
    csv.field_size_limit(2**31 - 1)  # a field may be a whole book
    rows = csv.DictReader(lines, strict=True)
    try:
        for row in rows:
            if None in row:
                raise csv.Error("more fields than the first line has names")
            yield row, f"{path}:{rows.line_num}"
    except csv.Error as error:
        raise DataError(
            expected="a CSV file with names in its first line",
            got=f"{error} at {path}:{rows.line_num}",
            fix="Write the file again, with quotes around fields that hold commas, quotes or lines.",
        ) from error


def _parquet(path: Path, column: str) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            columns = table.schema_arrow.names
            found = next((name for name in (column, *COLUMNS) if name in columns), None)
            if found is None:
                raise DataError(
                    expected=f"a column {column!r} in {path}",
                    got=f"columns {', '.join(columns)}",
                    fix="Set `text_column` to the column that holds the text.",
                )
            number = 0
            # Small batches: one row may be a whole book.
            for batch in table.iter_batches(batch_size=64, columns=[found]):
                for value in batch.column(0):
                    place = f"{path} row {number}"
                    yield {found: _parquet_value(value, place)}, place
                    number += 1
    except pa.ArrowException as error:
        raise DataError(
            expected="a Parquet file",
            got=f"{path}: {error}",
            fix="Write the file again, or leave it out.",
        ) from error


def _parquet_value(value: Any, place: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise DataError(
            expected=f"UTF-8 text at {place}",
            got=f"byte 0x{error.object[error.start]:02x} at offset {error.start}",
            fix="Write the file again with text in UTF-8, or leave the row out.",
        ) from error
