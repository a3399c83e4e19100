"""From the word in a recipe to documents: which kind of source it names, and its two splits."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import replace

from linearard.data.config import PYDOC, SELF, DataConfig
from linearard.data.documentation import documentation_identity, read_documentation
from linearard.data.files import local_source
from linearard.data.hub import hub_source
from linearard.data.source import Source
from linearard.errors import DataError
from linearard.fields import check_value, one_of

_HASHED = 1_000_000  # characters at a time


def open_source(spec: str, config: DataConfig, hub_split: str) -> Source:
    """The source that `spec` names. Raises DataError when it names nothing."""
    if spec == PYDOC:
        identity = [PYDOC, *documentation_identity()]
        parts = frozenset({PYDOC})
        return Source(spec, lambda: iter(read_documentation()), parts, identity, plain=True)
    if spec == SELF:
        return Source(spec, _not_written, frozenset({SELF}), [SELF])
    if (local := local_source(spec, config.text_column)) is not None:
        return local
    return hub_source(spec, hub_split, config)


def _not_written() -> Iterator[str]:
    raise DataError(
        expected="text that is there",
        got=f"{SELF!r}, which a run writes once it has the model",
        fix=f"Train with a recipe, or name other text; ./{SELF} is a file or folder of that name.",
    )


def open_split(config: DataConfig, split: str) -> Source:
    """The documents of `split` ("train" or "validation"), without the empty ones.

    Raises DataError when a source names nothing, or when train and validation share a part.
    """
    check_value(split, one_of(("train", "validation")), "split")
    train = open_source(config.train, config, config.split)
    if config.validation is None:
        return _filtered(train, config, split)
    validation = open_source(config.validation, config, config.validation_split)
    if shared := sorted(train.parts & validation.parts):
        raise DataError(
            expected="held-out text that is not trained on",
            got=f"{shared[0]} in both `train` and `validation` ({len(shared)} shared)",
            fix="Name other text, or leave `validation` out to hold a part of `train` out.",
        )
    return _filtered(train if split == "train" else validation, config, None)


def _filtered(source: Source, config: DataConfig, held_out: str | None) -> Source:
    """Apply `max_documents`, drop empty documents and, with `held_out`, keep one side."""
    fraction = config.validation_fraction

    def read() -> Iterator[str]:
        for text in itertools.islice(source.read(), config.max_documents):
            side = held_out and _side(text, fraction)
            if text and not text.isspace() and side == held_out:
                yield text

    rule = [config.text_column, config.max_documents, held_out, held_out and fraction]
    characters = source.characters
    if characters is not None and held_out:
        characters = round(characters * (fraction if held_out == "validation" else 1 - fraction))
    return replace(source, read=read, identity=[source.identity, rule], characters=characters)


def _side(text: str, fraction: float) -> str:
    return "validation" if held_out_below(text) < fraction else "train"


def held_out_below(text: str) -> float:
    """The share of documents, 0 to 1, above which `validation_fraction` holds this document out."""
    hashed = hashlib.sha256()
    for start in range(0, len(text), _HASHED):  # a copy of a whole book would be one too many
        hashed.update(text[start : start + _HASHED].encode("utf-8", "surrogatepass"))
    return int.from_bytes(hashed.digest()[:8]) / 2**64
