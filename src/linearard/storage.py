"""Files that are whole or not there, and the folder for what can be made again."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BEGINNING = re.compile(r"\.(.+)\.\d+")


def cache_folder(name: str) -> Path:
    """The folder of this name in the user's cache (`$XDG_CACHE_HOME` or `~/.cache`); it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "linearard" / name


@contextlib.contextmanager
def beginning(path: Path) -> Iterator[Path]:
    """Where to write what is to be a file once it is whole; removed at the end unless it was renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a file whose place it takes at the end of the block; after an error it does not."""
    with beginning(path) as temporary:
        yield temporary
        os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the whole new one, never a part."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def write_json(path: Path, content: Any) -> None:
    """Write JSON as `write_text` writes text."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def begun(name: str) -> str | None:
    """The name of the file that one of this name was to become; None: it is no beginning of one."""
    found = _BEGINNING.fullmatch(name)
    return found[1] if found else None


def remove_beginnings(folder: Path, names: set[str]) -> None:
    """Remove what killed processes have left of files of these names."""
    for path in list(folder.iterdir()):
        if begun(path.name) in names and path.is_file():
            path.unlink()
