"""A decision of `restore` with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One decision.

    Attributes:
        what: is decided, in words.
        value: what was chosen.
        reason: why.
    """

    what: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.value} ({self.reason})"
