"""Pointwise operations: plain PyTorch, the Triton kernels without a GPU, and on one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"POINTWISE": "plain"}, id="plain"),
        pytest.param(
            {"POINTWISE": "triton", "TRITON_INTERPRET": "1"}, id="interpreted", marks=needs_triton
        ),
        pytest.param(
            {"POINTWISE": "triton", "POINTWISE_DEVICE": "cuda"},
            id="gpu",
            marks=[pytest.mark.gpu, needs_triton, needs_gpu],
        ),
    ],
)
def test_against_float64(environment):
    path = Path(__file__).with_name("pointwise_cases.py")
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(path)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
