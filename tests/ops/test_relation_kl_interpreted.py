"""The Triton kernels without a GPU, in a process of their own.

The interpreter must be chosen before triton is first imported, and must not leak into others.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_kernels_in_the_interpreter():
    """One process for all files: each start costs as much as a tenth of the cases."""
    files = sorted(str(path) for path in Path(__file__).parent.glob("interpreted_*.py"))
    assert len(files) == 3
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *files],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
