"""Disks that are full, or cannot be written: one message instead of a library's error."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from linearard.errors import CheckpointError

_GO_ON = "Free some, and go on with --resume; or choose another output_dir."
#: `torch.save` tells a file that it cannot write by its place in its own source.
_OF_TORCH = ("inline_container.cc", "PytorchStreamWriter")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def room_for_checkpoint(folder: Path, fix: str = _GO_ON) -> Iterator[None]:
    """Turn what writers raise where a file cannot be written into a refusal.

    PyTorch and safetensors raise errors of their own, which tell a full disk in their text alone.

    Args:
        folder: what is being written, for the message.
        fix: what to do where the disk is full.

    Raises:
        CheckpointError: it is full, or the folder cannot be written.
    """
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(folder, fix) from error
        raise CheckpointError(
            expected="an output folder that can be written",
            got=f"{error.filename or folder}: {error.strerror or error}",
            fix="Choose another output folder, or mend its permissions.",
        ) from error
    except (RuntimeError, SafetensorError) as error:
        text = str(error)
        if any(word in text for word in ("No space left", "quota", *_OF_TORCH)):
            raise _full(folder, fix) from error
        raise


def check_room(folder: Path, needed: int, what: str, fix: str) -> None:
    """Refuse before any work what the disk has no room for.

    Args:
        folder: an existing folder on it.
        needed: bytes.
        what: what they are for.
        fix: what to do.

    Raises:
        CheckpointError: fewer are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            expected=f"{_size(needed)} for {what} in {folder}",
            got=f"{_size(free)} free",
            fix=fix,
        )


def check_can_be_made(folder: Path) -> None:
    """Refuse an output folder that cannot be made or written; nothing is changed.

    Raises:
        CheckpointError: there is a file in its way, or the user may not write there.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        got = f"{folder}, in whose way is the file {there}"
    elif not os.access(there, os.W_OK | os.X_OK):
        got = f"{folder}, which cannot be written"
    else:
        return
    raise CheckpointError(
        expected="an output folder that can be written",
        got=got,
        fix="Choose another output folder.",
    )


def _full(folder: Path, fix: str) -> CheckpointError:
    return CheckpointError(expected=f"room on the disk for {folder}", got="a full disk", fix=fix)


def _size(number: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} bytes"
