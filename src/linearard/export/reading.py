"""The process that reads an export back, and the comparison of what it found with what was trained."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from linearard.errors import CheckpointError
from linearard.rope import RopeTable

_FIX = "Nothing was exported; report this with your recipe."
_SCRIPT = Path(__file__).with_name("reader.py")
#: Frequencies travel through numbers with 17 digits and a formula in float32: some units in the last place.
_TABLE_RTOL = 2e-6
_SCALE_RTOL = 1e-6
#: Float32 logits of the same weights: between kernels of one device, and between two devices.
_NOISE, _NOISE_BETWEEN_DEVICES = 2e-5, 1e-3
#: What the smallest fault that must be seen may hide, and the most that is ever called the same.
_SHARE_OF_CHANGE, _MOST = 0.02, 2e-4
#: Of the positions of a probe so many decide. Where a few tokens are laid over the whole window, angles are
#: large: the last place of a float32 frequency is .004 rad at position 65,536, and a tenth of such positions
#: amplifies it a hundred times (2.4e-4 on SmolLM2 x 8, the median 2e-5). A fault moves all of them.
_OF_POSITIONS, _OF_FAR_POSITIONS = 0.9, 0.5


class ReaderProcess:
    """A process that loads exports with transformers and peft alone, one after another.

    Args:
        python: an interpreter whose environment has torch and transformers; default: this one's.
    """

    def __init__(self, python: str | Path | None = None) -> None:
        self.python = str(python or sys.executable)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._process is not None:
            self._end()

    def read(self, probes: list[dict[str, Any]], **request: Any) -> dict[str, Any]:
        """Load a folder and look at it.

        Args:
            probes: see `reader.observe`.
            request: see `reader.load`.

        Returns:
            What `reader.observe` found, and `transformers`: the version that read it.

        Raises:
            CheckpointError: the folder could not be read.
        """
        with tempfile.TemporaryDirectory() as scratch:
            places = {"probes": f"{scratch}/probes.pt", "out": f"{scratch}/found.pt"}
            torch.save(probes, places["probes"])
            answer = self._ask(request | places | {"folder": str(request["folder"])})
            if "error" in answer:
                raise CheckpointError(
                    expected=f"transformers {answer['transformers']} to read the export",
                    got=answer["error"].strip().splitlines()[0].rstrip("."),
                    fix="Export in another form, or read it with another version.",
                )
            return torch.load(places["out"]) | {"transformers": answer["transformers"]}

    def _end(self) -> int:
        process, self._process = self._process, None
        process.stdin.close()
        process.stdout.close()
        return process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen(
                [self.python, str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
            )
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._end()
            raise CheckpointError(
                expected=f"a process of {self.python} that reads the export",
                got=f"its end, with code {code}",
                fix="Free memory if it was killed (-9), or see that torch and transformers are installed.",
            )
        return json.loads(line)


@dataclass(frozen=True)
class Trained:
    """What a reader has to find.

    Attributes:
        tables: the trained RoPE tables by layer type, `""` for all layers (`RopeViews.tables`).
        observed: what `reader.observe` found on the model in memory.
        change: relative change of each probe's logits that training made; None where nothing was trained.
        device: where the model was observed.
        far: for each probe whether its few tokens are laid over the whole window.
    """

    tables: dict[str, RopeTable]
    observed: dict[str, Any]
    change: float | None
    device: torch.device
    far: tuple[bool, ...]


def compare(trained: Trained, found: dict[str, Any], *, device: str) -> dict[str, Any]:
    """Refuse an export that is read as another model than the one that was trained.

    Args:
        trained: what has to be found.
        found: what `ReaderProcess.read` found in the folder.
        device: where the reader computed.

    Returns:
        `relative_error` of the logits, the largest over probes, and `top1_agreement`; how many `probes`
        there were and `tables` were compared.

    Raises:
        CheckpointError: other frequencies, another attention scaling or softmax scale, or other logits than
            rounding in float32 explains.
    """
    reader = f"transformers {found['transformers']}"
    _compare_tables(trained, found["tables"], reader)
    _compare_scales(trained.observed["scales"], found["scales"], reader)
    same_device = torch.device(device).type == trained.device.type
    tolerance = _NOISE if same_device else _NOISE_BETWEEN_DEVICES
    if trained.change is not None:
        tolerance = max(tolerance, min(_SHARE_OF_CHANGE * trained.change, _MOST))
    triples = zip(trained.observed["logits"], found["logits"], trained.far, strict=True)
    compared = [entry for entry in triples if entry[0] is not None and entry[1] is not None]
    errors = [
        _typical_error(expected, got, _OF_FAR_POSITIONS if far else _OF_POSITIONS)
        for expected, got, far in compared
    ]
    pairs = [(expected, got) for expected, got, _ in compared]
    worst = max(errors, default=math.nan)
    if not worst <= tolerance:
        raise CheckpointError(
            expected=f"{reader} to give the trained model's logits (relative error up to {tolerance:.1g})",
            got=f"{worst:.3g}",
            fix=_FIX,
        )
    same = torch.cat([expected.argmax(-1) == got.argmax(-1) for expected, got in pairs])
    return {
        "transformers": found["transformers"],
        "relative_error": max(_relative(expected, got) for expected, got in pairs),
        "tolerance": tolerance,
        "top1_agreement": float(same.float().mean()),
        "probes": len(pairs),
        "tables": len(found["tables"]),
    }


def _relative(expected: Tensor, got: Tensor) -> float:
    return float((got - expected).double().norm() / expected.double().norm())


def _typical_error(expected: Tensor, got: Tensor, share: float) -> float:
    """The relative error that this share of the positions stays within.

    Not the largest: where a mixture of experts is about to choose another expert, rounding decides.
    """
    if not torch.isfinite(got).all():
        return math.inf
    errors = (got - expected).double().norm(dim=-1) / expected.double().norm(dim=-1)
    return float(errors.sort().values[int(share * (len(errors) - 1))])


def layer_type_of(name: str) -> str:
    """The layer type that a buffer's full name tells, `""` if none: versions of transformers differ here.

    `model.rotary_emb.sliding_attention_inv_freq` in 5, `model.rotary_emb_local.inv_freq` and
    `model.rotary_embs.sliding_attention.inv_freq` in 4.
    """
    *path, buffer = name.split(".")
    named = re.search(r"(\w+_attention)", f"{buffer.removesuffix('inv_freq')} {path[-1]}")
    if named:
        return named[1].rstrip("_")
    return "sliding_attention" if path[-1].endswith("_local") else ""


def _compare_tables(trained: Trained, found: dict[str, tuple[Tensor, float]], reader: str) -> None:
    seen: set[str] = set()
    for name, (inv_freq, attention_scaling) in found.items():
        wanted = _wanted(trained, name)
        if wanted is None:
            continue
        kind, table = wanted
        seen.add(kind)
        if not table.same_as(RopeTable(inv_freq, attention_scaling), rtol=_TABLE_RTOL):
            raise CheckpointError(
                expected=f"{reader} to rotate {name} by the trained table ({_words(table)})",
                got=_words(RopeTable(inv_freq, attention_scaling)),
                fix=_FIX,
            )
    if missing := trained.tables.keys() - seen:
        raise CheckpointError(
            expected=f"{reader} to have a RoPE table for {', '.join(sorted(missing)) or 'all layers'}",
            got=", ".join(sorted(found)) or "none",
            fix=_FIX,
        )


def _wanted(trained: Trained, name: str) -> tuple[str, RopeTable] | None:
    """Layer type and table of a buffer; None for one that is no part of the text decoder's RoPE."""
    live = trained.observed["tables"]
    kind = layer_type_of(name)
    if kind not in trained.tables:
        kind = "full_attention" if "full_attention" in trained.tables and not kind else ""
    if name in live:
        table = RopeTable(*live[name])
        return kind, table
    return (kind, trained.tables[kind]) if kind in trained.tables else None


def _words(table: RopeTable) -> str:
    shown: Sequence[float] = table.inv_freq.tolist()
    return (
        f"{len(shown)} frequencies from {shown[0]:.6g} to {shown[-1]:.6g}, "
        f"attention scaling {table.attention_scaling:.6g}"
    )


def _compare_scales(expected: dict[str, float], found: dict[str, float], reader: str) -> None:
    for name in expected.keys() & found.keys():
        if not math.isclose(expected[name], found[name], rel_tol=_SCALE_RTOL):
            raise CheckpointError(
                expected=f"{reader} to scale attention scores by {expected[name]:.6g} ({name})",
                got=f"{found[name]:.6g}",
                fix=_FIX,
            )
