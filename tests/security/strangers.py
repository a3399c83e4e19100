"""What a stranger can do to files, and what may come of it."""

import json
import os
import pickle
from pathlib import Path

from linearard.cli.main import main
from linearard.model import written


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_recipe(checkpoint, section, **changes):
    """Change the recipe of a checkpoint, and the hashes with it, as a stranger can."""
    path = checkpoint / "linearard.json"
    metadata = json.loads(path.read_text())
    part = metadata["recipe"].setdefault(section, {}) if section else metadata["recipe"]
    part.update(changes)
    path.write_text(json.dumps(metadata))
    written.complete(checkpoint)


def snapshot(folder):
    return {p: p.is_file() and p.read_bytes() for p in sorted(Path(folder).rglob("*"))}


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments), "--quiet"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("linearard: error: expected ") and captured.out == ""
    return line


def payload(ran):
    """A pickle that leaves a file when it is read."""
    return pickle.dumps(_Payload(str(ran)))


class _Payload:
    def __init__(self, place):
        self._place = place

    def __reduce__(self):
        return (os.mkdir, (self._place,))
