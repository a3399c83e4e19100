"""How fast a device is: measured constants, stored where the user's other caches are."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from linearard.counting.products import Product
from linearard.errors import CheckpointError
from linearard.storage import cache_folder, write_json

_SHIPPED = "h200.json"
_FORMAT = 1


@dataclass(frozen=True)
class Speed:
    """Operations a second of a kernel whose work is pairs of tokens.

    Attributes:
        head_dim, tokens: of the measured shape.
        forward, backward: operations a second, those computed a second time included.
    """

    head_dim: int
    tokens: int
    forward: float
    backward: float


@dataclass(frozen=True)
class Rates:
    """What one device does in a second.

    Attributes:
        device, versions, source: where this was measured, with what, and how.
        gemm: operations a second of large matrix products.
        gemm_half: a product whose smaller side has this many columns runs at half of that rate.
        attention, relation: by shape; for other numbers of tokens, what lies between.
        bandwidth: bytes a second of elementwise passes.
        host: seconds that the host needs to launch, by what: `teacher` (a layer's forward), `student` (a
            layer forward and backward), `relation` (one of a layer, both ways), `optimizer` (a trained
            tensor, once a step).
        memory: bytes of the device; 0: not known.
        bus: bytes a second between pinned host memory and the device; 0: not measured.
        windowed: attention within a sliding window, by shape; none: as other attention.
    """

    device: str
    versions: dict[str, str]
    source: str
    gemm: float
    gemm_half: float
    attention: tuple[Speed, ...]
    relation: tuple[Speed, ...]
    bandwidth: float
    host: dict[str, float] = field(default_factory=dict)
    memory: float = 0.0
    bus: float = 0.0
    windowed: tuple[Speed, ...] = ()

    def seconds(self, product: Product) -> float:
        """Time of a product on the device."""
        if product.kind in ("attention", "relation"):
            speeds = self.attention if product.kind == "attention" else self.relation
            if product.windowed and self.windowed:
                speeds = self.windowed
            speed = _between(speeds, product.inner, product.columns)
            backward = product.phase == "backward"
            return product.flops / (speed.backward if backward else speed.forward)
        side = min(product.inner, product.columns, product.rows)
        return product.flops * (1 + self.gemm_half / side) / self.gemm

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `from_dict` reads it."""
        return {"format": _FORMAT} | asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Rates:
        """Rates from plain data.

        Raises:
            CheckpointError: written by another version, or broken.
        """
        data = dict(data)
        try:
            if data.pop("format") != _FORMAT:
                raise ValueError
            for name in {"attention", "relation", "windowed"} & data.keys():
                data[name] = tuple(Speed(**speed) for speed in data[name])
            return cls(**data)
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                expected="measured rates of this version of linearard",
                got="others",
                fix="Run `linearard plan --calibrate` again.",
            ) from None


def shipped_rates() -> Rates:
    """Those of an H200: what `benchmarks/results/h200/planner.json` calibrated."""
    file = resources.files("linearard") / "planning" / _SHIPPED
    return Rates.from_dict(json.loads(file.read_text(encoding="utf-8")))


def stored_rates(device: str) -> Rates | None:
    """What `store` kept for a device of this name, if anything.

    Raises:
        CheckpointError: the file is broken, or of another version.
    """
    path = _path(device)
    if not path.is_file():
        return None
    try:
        return Rates.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            expected="measured rates in a JSON file",
            got=f"{path}: {error}",
            fix="Run `linearard plan --calibrate` again.",
        ) from error


def store(rates: Rates) -> Path:
    """Keep rates for their device in the user's cache folder; the file."""
    path = _path(rates.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, rates.to_dict())
    return path


def _path(device: str) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return cache_folder("rates") / f"{name}.json"


def _between(speeds: Sequence[Speed], head_dim: int, tokens: int) -> Speed:
    """The speed at the nearest head_dim, between the two nearest numbers of tokens, on a log scale."""
    width = min((s.head_dim for s in speeds), key=lambda width: abs(math.log(width / head_dim)))
    known = sorted((s for s in speeds if s.head_dim == width), key=lambda s: s.tokens)
    below = [s for s in known if s.tokens <= tokens] or known[:1]
    above = [s for s in known if s.tokens >= tokens] or known[-1:]
    low, high = below[-1], above[0]
    if low is high or low.tokens == high.tokens:
        return low
    share = math.log(tokens / low.tokens) / math.log(high.tokens / low.tokens)
    forward, backward = (
        a ** (1 - share) * b**share
        for a, b in ((low.forward, high.forward), (low.backward, high.backward))
    )
    return Speed(width, tokens, forward, backward)
