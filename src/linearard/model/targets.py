"""Which linear layers an adapter changes."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from linearard.architectures import PROJECTIONS
from linearard.errors import ModelError


def find_targets(
    model: Any, attention: Iterable[nn.Module], asked: Sequence[str] | None
) -> list[str]:
    """Paths of the linear layers to be trained, as `named_modules` has them.

    Args:
        model: a causal language model.
        attention: the decoder's attention modules. Without `asked` the projections of q, k and v in them
            are found; a vision tower's are not.
        asked: names (the last part of a path), paths or their ends, and patterns with `*`, `?` or `[...]`
            for either; of the decoder and the LM head.

    Raises:
        ModelError: an entry names no linear layer.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    if asked is None:
        inside = [
            f"{paths[id(module)]}.{name}"
            for module in attention
            for name, part in module.named_modules()
            if isinstance(part, nn.Linear)
        ]
        return _projections(inside)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    linears = [paths[id(part)] for part in decoder.modules() if isinstance(part, nn.Linear)]
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        linears.append(paths[id(head)])
    found: list[str] = []
    for entry in asked:
        matching = [path for path in linears if _matches(path, entry)]
        if not matching:
            raise _missing(f"linear layers that match {', '.join(asked)}", linears, entry)
        found += [path for path in matching if path not in found]
    return found


def as_peft_targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The same for peft: names where they say as much, for they are what other tools expect to read."""
    names = sorted({_name(path) for path in targets})
    named = [path for path, _ in model.named_modules() if _name(path) in names]
    return names if set(named) == set(targets) else list(targets)


def _projections(linears: list[str]) -> list[str]:
    present = {_name(path) for path in linears}
    for names in PROJECTIONS:
        if names.keys() <= present:
            return [path for path in linears if _name(path) in names]
    raise _missing(
        "attention projections named q_proj, k_proj, v_proj (or one fused qkv projection)", linears
    )


def _matches(path: str, entry: str) -> bool:
    return fnmatch.fnmatchcase(path, entry) or fnmatch.fnmatchcase(path, f"*.{entry}")


def _name(path: str) -> str:
    return path.rpartition(".")[2]


def _missing(expected: str, linears: Iterable[str], entry: str = "") -> ModelError:
    named = f"linear layers named {', '.join(sorted(set(map(_name, linears)))) or 'nothing'}"
    return ModelError(
        expected=expected,
        got=f"none for {entry!r} among {named}" if entry else named,
        fix="Name those that make queries, keys and values in adapter.target_modules.",
    )
