"""What a person asks `restore` for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from linearard.errors import RecipeError, shown

SCALINGS = ("yarn", "linear")
ADAPTERS = ("auto", "direct", "lora")
#: Options in tokens: the least, the most, an example.
_RANGES = {
    "window": (32, 100_000_000, "131072"),
    "native-window": (16, 100_000_000, "8192"),
    "tokens": (2, 100_000_000_000, "4.2M"),
}


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
        for name, (least, most, example) in _RANGES.items():
            value = getattr(self, name.replace("-", "_"))
            if value is not None and not least <= value <= most:
                raise RecipeError(
                    expected=f"--{name} of {least:,} to {most:,} tokens",
                    got=f"{value:,}",
                    fix=f"Correct --{name}: {example}, for instance.",
                )
        for name, known in (("scaling", SCALINGS), ("adapter", ADAPTERS)):
            if getattr(self, name) not in known:
                raise RecipeError(
                    expected=f"--{name} among {', '.join(known)}",
                    got=shown(getattr(self, name)),
                    fix=f"Correct --{name}.",
                )


def parse_window(text: str, option: str = "--window") -> int:
    """Tokens of a window: `131072`, or `128k`, where k is 1,024.

    Args:
        text: as it was given.
        option: what it was given for.

    Raises:
        RecipeError: it is no number of tokens.
    """
    return _parse(text, {"k": 1024, "m": 1024**2}, option)


def parse_tokens(text: str) -> int:
    """Tokens of `4.2M`, `64k` or `4_200_000`, where k and M are thousands and millions.

    Raises:
        RecipeError: it is no number of tokens.
    """
    return _parse(text, {"k": 1e3, "m": 1e6, "b": 1e9}, "--tokens")


def _parse(text: str, units: dict[str, float], option: str) -> int:
    word = text.strip().lower().replace("_", "").replace(",", "")
    unit = units.get(word[-1:], 1.0)
    try:
        count = float(word[:-1] if unit > 1 else word) * unit
        if not 1 <= count < 1e15 or abs(count - round(count)) > 1e-6 * count:
            raise ValueError
    except ValueError:
        raise RecipeError(
            expected=f"a number of tokens such as 131072, 64k or 4.2M for {option}",
            got=shown(text),
            fix=f"Correct {option}.",
        ) from None
    return round(count)
