"""What a person asks `restore` for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from linearard.errors import RecipeError
from linearard.fields import LARGEST_SEED, check_fields, described, one_of, required, whole

SCALINGS = ("yarn", "linear")
ADAPTERS = ("auto", "direct", "lora")


@dataclass(frozen=True)
class RestoreRequest:
    """A model, the window it shall have, and what may be used for that."""

    model: str = required("Hub id, folder, `.gguf` file or `package:NAME`.")
    window: int = required("Tokens that the restored model shall read.", whole(32, 100_000_000))
    output: Path = required("Folder of the run.")
    data: str | None = described(
        None, "Text to train on, in the forms of `data.train`; null: the model's own."
    )
    validation: str | None = described(
        None,
        "Held-out text; null: a share of `data`, or the documentation of the installed Python.",
    )
    tokens: int | None = described(
        None,
        "Training tokens in all; null: as many as suit the device.",
        whole(2, 100_000_000_000).or_null(),
    )
    native_window: int | None = described(
        None,
        "Tokens the model was trained to read, where its configuration promises more.",
        whole(16, 100_000_000).or_null(),
    )
    scaling: str = described("yarn", "Family of the RoPE scaling.", one_of(SCALINGS))
    adapter: str = described(
        "auto", "What is trained; auto: by the model's size.", one_of(ADAPTERS)
    )
    seed: int = described(0, "Of the run.", whole(0, LARGEST_SEED))

    def __post_init__(self) -> None:
        check_fields(self, "--")


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
            value=text,
            fix=f"Correct {option}.",
        ) from None
    return round(count)
