"""What text to read and how to cut it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from linearard.fields import (
    LARGEST_SEED,
    Beside,
    Rule,
    check_fields,
    described,
    flag,
    number,
    required,
    text,
    user_path,
    whole,
)
from linearard.storage import cache_folder

#: The source that is written by the model itself.
SELF = "self"
#: The documentation of the installed Python, a source that needs no network.
PYDOC = "pydoc"
_HELD_OUT = Rule(
    lambda v: text().right(v) and v != SELF,
    f"text that a model did not write (./{SELF} is a file or folder of that name)",
)


@dataclass
class DataConfig:
    """Where the text comes from, and how it becomes blocks of tokens.

    The fields are checked on construction (RecipeError); the text itself is looked for when it
    is first read (DataError).
    """

    train: str = required(
        "Text to train on: a file, folder or glob of .txt, .md, .rst, .py, .jsonl, .jsonl.gz "
        "or .parquet, or a file or glob of .json (an array of records) or .csv; `pydoc` for the "
        "documentation of the installed Python; `self` for text that the original model writes itself, as "
        "much as `sequences` and `window` ask for, joined as with `pack`; or a data set of the Hugging Face "
        "hub, `owner/name` or `owner/name:config_name`. Records of conversations (`messages` or "
        "`conversations`) go through the tokenizer's chat template.",
        text(),
    )
    self_start: str | None = described(
        None,
        "What each document of `self` begins after, behind what the tokenizer puts before every text; "
        "default: that alone, or the BOS token, or EOS where it has none. Documents end at EOS, or at the "
        "special token given here, if it is one that stands between documents; at the latest after 640 "
        "tokens.",
        text().or_null(),
        Beside(
            lambda data: not (data.self_chat and data.self_start),
            "absent beside self_chat",
            "A chat template begins conversations; leave self_start or self_chat out.",
        ),
    )
    self_chat: bool = described(
        False,
        "Documents of `self` are conversations of one to three exchanges in the tokenizer's chat "
        "template: the original writes both sides.",
        flag(),
    )
    validation: str | None = described(
        None,
        "Held-out text, in the same forms but `self`. Without it, `validation_fraction` of the "
        "train documents, chosen by a hash of their content, is held out.",
        _HELD_OUT.or_null(),
    )
    validation_fraction: float = described(
        0.05,
        "Share of the train documents held out when `validation` is absent.",
        number(0, 1, below=True),
    )
    text_column: str = described(
        "text",
        "Column or key that holds the text in jsonl, json, csv, parquet and hub data.",
        text(),
    )
    split: str = described(
        "train",
        "Split of a hub data set to train on.",
        text(),
    )
    validation_split: str = described(
        "validation",
        "Split to hold out when `validation` is a hub data set.",
        text(),
    )
    streaming: bool = described(
        True,
        "Read hub data over the network as far as needed, instead of downloading it.",
        flag(),
    )
    max_documents: int | None = described(
        None,
        "Read at most this many documents of each source, in its own order.",
        whole(1).or_null(),
    )
    pack: bool = described(
        False,
        "Join documents with the end-of-text token before cutting, so that blocks may "
        "hold parts of several. Otherwise no block crosses two documents.",
        flag(),
    )
    repeated_passages: float = described(
        0.0,
        "Share of each training window overwritten with passages that stood earlier in "
        "it, so that looking back pays; 0 to 0.5.",
        number(0, 0.5, words="a share"),
        formerly="recall",
    )
    repeated_opening: float = described(
        2.0,
        "How near the opening of a window these passages stood: a uniform number to this "
        "power; 1: anywhere alike.",
        number(1, 16, words="a power"),
        formerly="recall_opening",
    )
    cache_dir: str | None = described(
        None,
        "Folder for the token blocks; default: linearard/blocks in the user's cache "
        "folder ($XDG_CACHE_HOME or ~/.cache).",
        text().or_null(),
    )
    seed: int = described(
        0,
        "Seed of the order of the blocks; a run adds the recipe's own.",
        whole(0, LARGEST_SEED),
    )

    def __post_init__(self) -> None:
        check_fields(self, "data")

    @property
    def cache_path(self) -> Path:
        """The folder that holds the token blocks (it may not exist yet)."""
        if self.cache_dir is not None:
            return Path(user_path(self.cache_dir, "data.cache_dir"))
        return cache_folder("blocks")
