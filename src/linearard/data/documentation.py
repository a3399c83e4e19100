"""The documentation of the installed Python as text: a corpus that needs no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from linearard.errors import DataError

_SECONDS = 300


def documentation_identity() -> list[str]:
    """What decides the text: the interpreter's version and build, and its place."""
    return [sys.version, sys.base_prefix]


@cache
def read_documentation() -> tuple[str, ...]:
    """The documentation of every public module and topic, one document each, in a fixed order.

    About ten seconds on the first call of a process. It is rendered in a separate interpreter:
    importing the whole standard library runs code that this process must not. No site packages,
    no settings from the environment and a fixed hash seed, so one installation gives one text.
    """
    script = Path(__file__).with_name("_render_documentation.py")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    try:
        result = subprocess.run(
            [sys.executable, "-B", "-P", "-s", "-S", "-X", "utf8", str(script)],
            env=environment | {"PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or b"").decode(errors="replace").splitlines()
        raise DataError(
            expected="the documentation of the installed Python",
            got=" ".join([str(error), *lines[-1:]]),
            fix="Name local text files instead of `pydoc`.",
        ) from error
    return tuple(json.loads(line) for line in result.stdout.splitlines())
