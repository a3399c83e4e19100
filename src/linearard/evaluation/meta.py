"""What a result must say about itself."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linearard.evaluation.config import EvaluationConfig


def collect_meta(
    model: torch.nn.Module, config: EvaluationConfig, documents: Sequence[Tensor]
) -> dict[str, Any]:
    """Model, versions, device, precision, date (UTC), commit if any, and the configuration."""
    device = model.device
    return {
        "model": _model_name(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("linearard", "torch", "transformers")},
        },
        "commit": source_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "documents": {"count": len(documents), "tokens": sum(map(len, documents))},
        "config": asdict(config),
    }


def _model_name(model: torch.nn.Module) -> str:
    """The hub name, or the folder's name without the way to it, or the class."""
    name = model.config.name_or_path
    return (Path(name).name if Path(name).is_dir() else name) or type(model).__name__


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # run from a source tree
        return None


def source_commit() -> str | None:
    """The commit of the checkout this package runs from; None where it is installed."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
