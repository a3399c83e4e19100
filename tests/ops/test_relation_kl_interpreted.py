"""The Triton kernels without a GPU: each part of the cases in a process of its own.

The interpreter must be chosen before triton is first imported, and must not leak into others.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize(
    ("file", "cases"),
    [
        ("interpreted_cases.py", "self"),
        ("interpreted_cases.py", "not self"),
        ("interpreted_options.py", "random"),
        ("interpreted_options.py", "not random"),
        ("interpreted_candidate.py", "test"),
    ],
)
def test_kernels_in_the_interpreter(file, cases):
    path = Path(__file__).with_name(file)
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-k", cases, str(path)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
