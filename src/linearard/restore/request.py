"""What a person asks `restore` for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from linearard.errors import RecipeError, shown

SCALINGS = ("yarn", "linear")
ADAPTERS = ("auto", "direct", "lora")


@dataclass(frozen=True)
class RestoreRequest:
    """A model, the window it shall have, and what may be used for that.

    Attributes:
        model: hub id, folder, `.gguf` file or `package:NAME`.
        window: tokens that the restored model shall read.
        output: folder of the run.
        data: text to train on, in the forms of `data.train`; None: the model's own.
        validation: held-out text; None: a share of `data`, or the documentation of the installed Python.
        tokens: training tokens in all; None: as many as suit the device.
        native_window: tokens the model was trained to read, where its configuration promises more.
        scaling: family of the RoPE scaling.
        adapter: what is trained; auto: by the model's size.
        seed: of the run.
    """

    model: str
    window: int
    output: Path
    data: str | None = None
    validation: str | None = None
    tokens: int | None = None
    native_window: int | None = None
    scaling: str = "yarn"
    adapter: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("window", self.window), ("tokens", self.tokens)):
            if value is not None and value < 2:
                raise RecipeError(
                    expected=f"--{name} to be a number of tokens",
                    got=str(value),
                    fix=f"Give --{name}, for instance {'131072' if name == 'window' else '4.2M'}.",
                )
        for name, known in (("scaling", SCALINGS), ("adapter", ADAPTERS)):
            if getattr(self, name) not in known:
                raise RecipeError(
                    expected=f"--{name} among {', '.join(known)}",
                    got=shown(getattr(self, name)),
                    fix=f"Correct --{name}.",
                )


def parse_window(text: str) -> int:
    """Tokens of a window: `131072`, or `128k`, where k is 1,024.

    Raises:
        RecipeError: it is no number of tokens.
    """
    return _parse(text, {"k": 1024, "m": 1024**2})


def parse_tokens(text: str) -> int:
    """Tokens of `4.2M`, `64k` or `4_200_000`, where k and M are thousands and millions.

    Raises:
        RecipeError: it is no number of tokens.
    """
    return _parse(text, {"k": 1e3, "m": 1e6, "b": 1e9})


def _parse(text: str, units: dict[str, float]) -> int:
    word = text.strip().lower().replace("_", "").replace(",", "")
    unit = units.get(word[-1:], 1.0)
    try:
        count = float(word[:-1] if unit > 1 else word) * unit
        if not 1 <= count < 1e15:
            raise ValueError
    except ValueError:
        raise RecipeError(
            expected="a number of tokens such as 131072, 64k or 4.2M",
            got=shown(text),
            fix="Correct --window or --tokens.",
        ) from None
    return round(count)
