"""The errors a user can cause. Each says what was expected, what came, and what to do.

The command line prints them without a traceback and exits with code 2.
"""

from __future__ import annotations

import re
from typing import Any, Self

_LONGEST_SHOWN = 120
#: Tokens of well-known services, and passwords within addresses.
_SECRET = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[opsu]_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abp]-[\w-]{10,}|A(?:KIA|SIA)[A-Z0-9]{16}"
    r"|wandb_v1_\w{20,}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+)"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
)


def without_secrets(text: str) -> str:
    """The text with `[hidden]` in the place of what looks like a token or a password in an address."""
    return _SECRET.sub("[hidden]", text)


def shown(value: Any) -> str:
    """A value as a message shows it: in one line, shortened, without secrets."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of thousands of digits
        text = "a number of thousands of digits"
    text = without_secrets(" ".join(text.split()))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"


class UserError(ValueError):
    """Something the user gave cannot work.

    Args:
        expected: what would have been right, as a noun phrase.
        got: what came instead, in words.
        fix: one imperative sentence: what to do.
        value: what came instead, itself, in the place of `got`; it is `shown`.
    """

    def __init__(
        self, *, expected: str, got: str | None = None, fix: str, value: Any = None
    ) -> None:
        self.expected, self.got, self.fix = expected, shown(value) if got is None else got, fix
        super().__init__(expected, self.got, fix)

    def __str__(self) -> str:
        return f"expected {self.expected}, got {self.got}. {self.fix}"

    def reworded(self, *, expected: str | None = None, fix: str | None = None) -> Self:
        """The same error, as one puts it who knows where it happened."""
        return type(self)(expected=expected or self.expected, got=self.got, fix=fix or self.fix)

    def __reduce__(
        self,
    ) -> tuple[Any, ...]:  # keyword-only arguments survive pickling between processes
        return (_rebuild, (type(self), self.expected, self.got, self.fix))


def _rebuild(cls: type[UserError], expected: str, got: str, fix: str) -> UserError:
    return cls(expected=expected, got=got, fix=fix)


class RecipeError(UserError):
    """A recipe field is unknown, misspelt, of the wrong type or out of range."""


class RopeError(UserError):
    """A RoPE scaling is invalid, or the live frequencies disagree with the configuration."""


class ModelError(UserError):
    """A model cannot be loaded, or cannot be restored with this method."""


class DataError(UserError):
    """Text is missing, empty, unreadable or too short for the window."""


class CheckpointError(UserError):
    """A checkpoint or an output folder does not fit the run."""


class DeviceError(UserError):
    """A device or a precision was asked for that this machine cannot give."""


class OperandError(UserError):
    """Tensors handed to an operation do not fit together."""


class NonFiniteLossError(UserError):
    """A loss became NaN or infinite; the step was refused and the state kept."""
