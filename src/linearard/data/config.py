"""What text to read and how to cut it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from linearard.errors import RecipeError

#: The source that is written by the model itself.
SELF = "self"


def require(right: bool, name: str, expected: str, got: object, fix: str) -> None:
    """Raise RecipeError unless `right`."""
    if not right:
        raise RecipeError(expected=f"`{name}` to be {expected}", got=repr(got), fix=fix)


def is_integer(value: object, least: int) -> bool:
    """True for an int (never a bool) of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass
class DataConfig:
    """Where the text comes from, and how it becomes blocks of tokens.

    The fields are checked on construction (RecipeError); the text itself is looked for when it
    is first read (DataError).
    """

    train: str = field(
        metadata={
            "help": "Text to train on: a file, folder or glob of .txt, .md, .rst, .py, .jsonl, .jsonl.gz "
            "or .parquet; `pydoc` for the documentation of the installed Python; `self` for text "
            "that the original model writes itself, as much as `sequences` and `window` ask for, joined "
            "as with `pack`; or a data set of the Hugging Face hub, `owner/name` or "
            "`owner/name:config_name`."
        },
    )
    self_start: str | None = field(
        default=None,
        metadata={
            "help": "What each document of `self` begins after; default: the tokenizer's BOS token, or EOS "
            "where it has none. Documents end at EOS, or at the special token given here, if it is one "
            "that stands between documents; at the latest after 640 tokens."
        },
    )
    self_chat: bool = field(
        default=False,
        metadata={
            "help": "Documents of `self` are conversations of one to three exchanges in the tokenizer's chat "
            "template: the original writes both sides."
        },
    )
    validation: str | None = field(
        default=None,
        metadata={
            "help": "Held-out text, in the same forms but `self`. Without it, `validation_fraction` of the "
            "train documents, chosen by a hash of their content, is held out."
        },
    )
    validation_fraction: float = field(
        default=0.05,
        metadata={"help": "Share of the train documents held out when `validation` is absent."},
    )
    text_column: str = field(
        default="text",
        metadata={"help": "Column or key that holds the text in jsonl, parquet and hub data."},
    )
    split: str = field(default="train", metadata={"help": "Split of a hub data set to train on."})
    validation_split: str = field(
        default="validation",
        metadata={"help": "Split to hold out when `validation` is a hub data set."},
    )
    streaming: bool = field(
        default=True,
        metadata={
            "help": "Read hub data over the network as far as needed, instead of downloading it."
        },
    )
    max_documents: int | None = field(
        default=None,
        metadata={"help": "Read at most this many documents of each source, in its own order."},
    )
    pack: bool = field(
        default=False,
        metadata={
            "help": "Join documents with the end-of-text token before cutting, so that blocks may "
            "hold parts of several. Otherwise no block crosses two documents."
        },
    )
    recall: float = field(
        default=0.0,
        metadata={
            "help": "Share of each training window overwritten with passages that stood earlier in "
            "it, so that looking back pays; 0 to 0.5."
        },
    )
    recall_opening: float = field(
        default=2.0,
        metadata={
            "help": "How near the opening of a window these passages stood: a uniform number to this "
            "power; 1: anywhere alike."
        },
    )
    cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the token blocks; default: linearard/blocks in the user's cache "
            "folder ($XDG_CACHE_HOME or ~/.cache)."
        },
    )
    seed: int = field(
        default=0,
        metadata={"help": "Seed of the order of the blocks; a run adds the recipe's own."},
    )

    def __post_init__(self) -> None:
        for name in ("train", "text_column", "split", "validation_split"):
            value = getattr(self, name)
            right = isinstance(value, str) and bool(value.strip())
            require(right, name, "a non-empty string", value, f"Set `{name}`.")
        for name in ("validation", "cache_dir", "self_start"):
            value = getattr(self, name)
            right = value is None or (isinstance(value, str) and bool(value.strip()))
            fix = f"Set `{name}` or leave it out."
            require(right, name, "a non-empty string or absent", value, fix)
        fix = f"Name other text, or ./{SELF} for a file or folder of that name."
        right = self.validation != SELF
        require(right, "validation", "text that a model did not write", self.validation, fix)
        for name in ("streaming", "pack", "self_chat"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, "true or false", value, "Write true or false.")
        fix = "A chat template begins conversations; leave self_start or self_chat out."
        right = not (self.self_chat and self.self_start)
        require(right, "self_start", "absent with `self_chat`", self.self_start, fix)
        fraction = self.validation_fraction
        right = isinstance(fraction, int | float) and not isinstance(fraction, bool)
        require(
            right and 0 <= fraction < 1,
            "validation_fraction",
            "a number of at least 0 and below 1",
            fraction,
            "Use a small share such as 0.05.",
        )
        share = self.recall
        right = isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 0.5
        require(right, "recall", "a share from 0 to 0.5", share, "Try 0.2, or leave it out.")
        power = self.recall_opening
        right = isinstance(power, int | float) and not isinstance(power, bool) and 1 <= power <= 16
        fix = "Leave it out; it is 2 then."
        require(right, "recall_opening", "a power from 1 to 16", power, fix)
        right = self.max_documents is None or is_integer(self.max_documents, 1)
        fix = "Leave it out to read every document."
        require(right, "max_documents", "a whole number of at least 1", self.max_documents, fix)
        right = is_integer(self.seed, 0)
        require(right, "seed", "a whole number of at least 0", self.seed, "Use a seed such as 0.")

    @property
    def cache_path(self) -> Path:
        """The folder that holds the token blocks (it may not exist yet)."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(base) / "linearard" / "blocks"
