"""Arrays or documents in one file: built once, by one process, complete or absent."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from linearard.errors import DataError

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
    return _once(folder, key, ".npy", lambda: _write_array(folder, key, build()))


def cached_documents(folder: Path, key: str, build: Callable[[], Iterable[str]]) -> Path:
    """The file `<key>-<hash of its lines>.jsonl` in `folder`, a document a line under "text".

    Damage, waiting, killed processes and errors: see `cached_array`.
    """

    def write() -> Path:
        content = hashlib.sha256()
        with _partial_file(folder, key) as file:
            for text in build():
                line = json.dumps({"text": text}).encode() + b"\n"
                file.write(line)
                content.update(line)
            file.close()
            path = folder / f"{key}-{content.hexdigest()[:_HASH]}.jsonl"
            os.replace(file.name, path)
        return path

    return _once(folder, key, ".jsonl", write)


def _once(folder: Path, key: str, ending: str, write: Callable[[], Path | None]) -> Path | None:
    """The file of this key; written by the first process that asks, while others wait."""
    from filelock import FileLock

    def find() -> Path | None:
        found = sorted(folder.glob(f"{key}-*{ending}"))
        return next((path for path in found if not _damage(path)), None)

    try:
        if found := find():
            return found
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            for left in folder.glob(f"{key}.*.part"):  # by a process that was killed
                left.unlink()
            for path in folder.glob(f"{key}-*{ending}"):
                if damage := _damage(path):
                    _LOGGER.warning(
                        "The cache %s was damaged (%s); it is built again.", path, damage
                    )
                    path.unlink()
            return find() or write()
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


@contextlib.contextmanager
def _partial_file(folder: Path, key: str) -> Iterator[Any]:
    """A new file that no reader takes for a whole one, removed unless it was renamed."""
    with tempfile.NamedTemporaryFile(
        dir=folder, prefix=f"{key}.", suffix=".part", delete=False
    ) as file:
        try:
            yield file
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.name)


def _write_array(folder: Path, key: str, arrays: Iterable[np.ndarray]) -> Path | None:
    content = hashlib.sha256()
    rows = 0
    with _partial_file(folder, key) as file:
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
        file.close()
        path = folder / f"{key}-{content.hexdigest()[:_HASH]}.npy"
        os.replace(file.name, path)
    return path


def _write_header(file, array: np.ndarray, rows: int) -> None:
    header = np.lib.format.header_data_from_array_1_0(array)
    header["shape"] = (rows, array.shape[1])
    np.lib.format.write_array_header_1_0(file, header)
