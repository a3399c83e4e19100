"""Arrays or documents in one file: built once, by one process, complete or absent."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from linearard.errors import DataError
from linearard.storage import beginning, remove_beginnings

_LOGGER = logging.getLogger(__name__)
_HASH = 32  # digits of it in the name of a file


def cached_array(folder: Path, key: str, build: Callable[[], Iterable[np.ndarray]]) -> Path | None:
    """The file `<key>-<hash of its rows>.npy` in `folder`, built if it is not there.

    The hash in the name says what the content must be: a file that has another, or another length than its
    header says, was damaged, and is built again with a word. Processes that ask at the same time wait for
    the first; a killed one leaves no file of this name.

    Args:
        folder: created if missing.
        key: a name for everything that decides the content.
        build: yields arrays [n, columns] of one dtype; when it yields none, nothing is written and
            the answer is None.

    Raises:
        DataError: the folder cannot be written.
    """
    return _once(folder, key, ".npy", lambda part: _write_array(part, build()))


def cached_documents(folder: Path, key: str, build: Callable[[], Iterable[str]]) -> Path:
    """The file `<key>-<hash of its lines>.jsonl` in `folder`, a document a line under "text".

    Damage, waiting, killed processes and errors: see `cached_array`.
    """

    return _once(folder, key, ".jsonl", lambda part: _write_documents(part, build()))


def _once(folder: Path, key: str, ending: str, write: Callable[[Path], str | None]) -> Path | None:
    """The file of this key; written by the first process that asks, while others wait.

    Args:
        folder, key, ending: of the file.
        write: writes it under another name; the hash of its content, None where it has none.
    """
    from filelock import FileLock

    def find() -> Path | None:
        found = sorted(folder.glob(f"{key}-*{ending}"))
        return next((path for path in found if not _damage(path)), None)

    try:
        if found := find():
            return found
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            for path in folder.glob(f"{key}-*{ending}"):
                if damage := _damage(path):
                    _LOGGER.warning(
                        "The cache %s was damaged (%s); it is built again.", path, damage
                    )
                    path.unlink()
            if found := find():
                return found
            remove_beginnings(folder, {key})
            with beginning(folder / key) as part:
                content = write(part)
                return content and part.replace(folder / f"{key}-{content[:_HASH]}{ending}")
    except OSError as error:
        raise DataError(
            expected="a cache folder that can be written",
            got=f"{folder}: {error}",
            fix="Set `cache_dir` to another folder, or free some space.",
        ) from error


def _damage(path: Path) -> str:
    """What is wrong with a file of the cache; empty if nothing."""
    status = path.stat()
    return _damage_of(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)  # of a file that is as it was, the content is read once
def _damage_of(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        if path.suffix == ".npy":
            try:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    return f"a header of version {version}"
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            except ValueError as error:
                return f"no header: {error}"
            held, said = size - file.tell(), math.prod(shape) * dtype.itemsize
            if held != said:
                return f"{held} bytes where the header says {said}"
        content = hashlib.sha256()
        while part := file.read(2**20):
            content.update(part)
    if content.hexdigest()[:_HASH] != path.stem.rpartition("-")[2]:
        return "its content is not what its name says"
    return ""


def _write_documents(path: Path, texts: Iterable[str]) -> str:
    content = hashlib.sha256()
    with open(path, "wb") as file:
        for text in texts:
            line = json.dumps({"text": text}).encode() + b"\n"
            file.write(line)
            content.update(line)
    return content.hexdigest()


def _write_array(path: Path, arrays: Iterable[np.ndarray]) -> str | None:
    content = hashlib.sha256()
    rows = 0
    with open(path, "wb") as file:
        for array in arrays:
            if rows == 0:
                _write_header(file, array, rows)
            data = np.ascontiguousarray(array).data
            file.write(data)
            content.update(data)
            rows += len(array)
        if rows == 0:
            return None
        # A .npy header has room for the first axis to grow, so the number of rows, known only
        # now, fits in the place of the first header.
        file.seek(0)
        _write_header(file, array, rows)
    return content.hexdigest()


def _write_header(file, array: np.ndarray, rows: int) -> None:
    header = np.lib.format.header_data_from_array_1_0(array)
    header["shape"] = (rows, array.shape[1])
    np.lib.format.write_array_header_1_0(file, header)
