"""What was written into a folder, by name: whole checkpoints, and removal of nothing else.

Two files of a folder say it. `complete.json` is of a checkpoint: size and hash of every file, written
last, when all of them are on the disk. `.linearard.json` is of an output folder: names, noted before the
files get them. A name that neither lists is a user's, and stays.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from linearard.storage import beginning, remove_beginnings, write_json

COMPLETE, RECORD = "complete.json", ".linearard.json"
#: The list of a checkpoint that is damaged or being removed.
_INCOMPLETE = "incomplete.json"


def complete(folder: Path, marker: str = COMPLETE, about: dict[str, Any] | None = None) -> None:
    """Declare a folder whole: its files are on the disk before their sizes and hashes are.

    Args:
        folder: all of it is listed.
        marker: name of the file with the list.
        about: further JSON-able entries of it.
    """
    markers = (folder / marker, folder / _INCOMPLETE)
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p not in markers]
    with ThreadPoolExecutor(8) as pool:  # one commit of the file system serves several
        list(pool.map(_sync, paths))
        hashes = list(pool.map(_hash, paths))
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": found}
        for path, found in zip(paths, hashes, strict=True)
    }
    write_json(folder / marker, {**(about or {}), "files": files})
    (folder / _INCOMPLETE).unlink(missing_ok=True)
    _sync_folder(folder)


def is_complete(folder: Path) -> bool:
    """Whether `complete` was reached for this folder and its files have their sizes; reads none."""
    return (folder / COMPLETE).is_file() and not damage(folder, hashes=False)


def damage(
    folder: Path,
    names: Iterable[str] | None = None,
    *,
    hashes: bool = True,
    marker: str = COMPLETE,
) -> str:
    """What of a folder is not as it was written, in words; empty: nothing.

    Args:
        folder: with `complete.json`.
        names: the files to compare; default: all that it lists.
        hashes: compare their content, too.
        marker: see `complete`.
    """
    files = _listed(folder / marker)
    if files is None:
        return f"{marker}: cannot be read"
    for name in files if names is None else names:
        path, stored = _inside(folder, name), files.get(name)
        if path is None or not isinstance(stored, dict):
            return f"{marker}: lists no good {name!r}"
        try:
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                return f"{name}: missing"
            if size != stored.get("size"):
                return f"{name}: {size:,} bytes instead of {stored.get('size')}"
            if hashes and _hash(path) != stored.get("sha256"):
                return f"{name}: not the bytes that were written"
        except OSError as error:
            return f"{name}: {error.strerror or error}"
    return ""


def withdraw(folder: Path, marker: str = COMPLETE) -> None:
    """Declare a folder not whole; what it lists can still be removed."""
    if (folder / marker).is_file():
        os.replace(folder / marker, folder / _INCOMPLETE)


def is_withdrawn(folder: Path) -> bool:
    """Whether a folder was whole, and was then being removed or replaced."""
    return (folder / _INCOMPLETE).is_file()


def install(staged: Path, folder: Path, marker: str = COMPLETE) -> None:
    """Put a complete folder in the place of another, of which only listed files are lost.

    Files of the same names are replaced. Killed half-way, the folder is the old one, the new one, or not
    complete.
    """
    if not folder.exists():
        os.rename(staged, folder)
    else:
        remove(folder, marker, keep_folder=True)
        shutil.copyfile(staged / marker, folder / _INCOMPLETE)  # what is ours of what comes now
        for path in sorted(staged.rglob("*")):
            if path.is_file() and path != staged / marker:
                target = folder / path.relative_to(staged)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
        os.replace(staged / marker, folder / marker)
        (folder / _INCOMPLETE).unlink()
        clear(staged)
        _sync_folder(folder)
    _sync_folder(folder.parent)


def remove(folder: Path, marker: str = COMPLETE, *, keep_folder: bool = False) -> None:
    """Remove what the list of a folder names, and the folder itself if nothing else is in it.

    Killed half-way, the folder is not complete, and calling it again removes the rest.

    Args:
        folder: that `complete` was called for.
        marker: see `complete`.
        keep_folder: leave the folder, even if it is empty.
    """
    withdraw(folder, marker)
    _remove_listed(folder, folder / _INCOMPLETE)
    if not keep_folder:
        _remove_if_empty(folder)


def remove_noted(folder: Path) -> None:
    """Remove the files that `note` has noted, and the folder if nothing else is in it."""
    _remove_listed(folder, folder / RECORD)
    _remove_if_empty(folder)


def _remove_listed(folder: Path, list_file: Path) -> None:
    names = list(_listed(list_file) or ())
    inner = set()
    for name in names:
        path = _inside(folder, name)
        if path is not None:
            inner.update(folder / parent for parent in PurePosixPath(name).parents if parent.name)
            if path.is_file() or path.is_symlink():
                path.unlink()
    for path in sorted(inner, reverse=True):  # the deepest first
        _remove_if_empty(path)
    remove_beginnings(folder, {*names, COMPLETE, RECORD})
    list_file.unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # what is left is a user's
        folder.rmdir()


def clear(staged: Path) -> None:
    """Remove a folder that is all ours: what was being written, perhaps by a process that was killed."""
    if staged.is_dir() and not staged.is_symlink():
        shutil.rmtree(staged)


def probe(folder: Path) -> None:
    """Write a file into a folder and remove it; an OSError where that cannot be done."""
    with beginning(folder / RECORD) as path:
        path.write_bytes(bytes(4096))


def note(folder: Path, names: Iterable[str]) -> None:
    """Note that files of these names, in an existing folder, are ours."""
    before = noted(folder) or set()
    if before >= set(names):
        return
    entries = dict.fromkeys(sorted({*before, *names}))
    write_json(folder / RECORD, {"written_by": "linearard", "files": entries})


def noted(folder: Path) -> set[str] | None:
    """The names that `note` has noted in a folder; None: it is not ours."""
    files = _listed(folder / RECORD)
    return None if files is None else set(files)


def _listed(path: Path) -> dict[str, Any] | None:
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return files if isinstance(files, dict) else None


def _inside(folder: Path, name: str) -> Path | None:
    """The path of a listed name, unless it leads out of the folder: a list may be a stranger's."""
    pure = PurePosixPath(name)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in name:
        return None
    path = folder
    for part in pure.parts[:-1]:
        path = path / part
        if path.is_symlink():
            return None
    return path / pure.parts[-1]


def _hash(path: Path) -> str:
    status = path.stat()
    return _hash_once(path, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _hash_once(path: Path, *status: int) -> str:
    """A checkpoint is compared when it is chosen and when it is read; its gigabytes are hashed once."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have a file's content on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Have a folder's names on the disk, where the file system can be asked for it."""
    with contextlib.suppress(OSError):
        _sync(path)
