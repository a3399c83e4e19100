"""What only the user may allow, on the command line: never a file, whoever wrote it.

A recipe, a sweep file and a checkpoint say what to compute. Code that comes with a model, kernels from the
hub and reports to a server are more than that: a file can ask for them, and the same value on the command
line allows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from linearard.errors import RecipeError

#: Reporters that write to the disk alone.
_LOCAL_REPORTERS = ("none", "tensorboard")


def check_permissions(
    source: Mapping[str, Any], given: Mapping[str, Any], where: str = "the recipe"
) -> None:
    """Refuse what a file asks for and the command line did not allow.

    Args:
        source: a recipe as plain data, what the command line says included.
        given: what the command line says, as values by dotted field name.
        where: what is read, for the message.

    Raises:
        RecipeError: code from elsewhere or reports to a server without permission.
    """
    for path, value, danger in _asked(source):
        if _granted(path, given) == value and value is not None:
            continue
        name = ".".join(path)
        text = str(value).lower() if isinstance(value, bool) else value
        raise RecipeError(
            expected=f"{where} without {name}, unless the command line says the same: {danger}",
            got=f"{name}: {text}"[:200],
            fix=f"Give --{name} on the command line if you trust where it comes from, or remove it.",
        )


def _asked(source: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """Path, value and danger of everything that needs the user's word."""
    model = _mapping(source.get("model"))
    if model.get("trust_remote_code", False) is not False:
        danger = "it runs the code that lies beside a model"
        yield ("model", "trust_remote_code"), model["trust_remote_code"], danger
    if "/" in str(model.get("attn_implementation")):
        danger = "it loads and runs kernels from the hub"
        yield ("model", "attn_implementation"), model["attn_implementation"], danger
    folder = _mapping(source.get("evaluation")).get("lm_eval_dir")
    if folder is not None:
        danger = "task files of lm-eval can name code that runs"
        yield ("evaluation", "lm_eval_dir"), folder, danger
    asked = source.get("report_to")
    reporters = asked if isinstance(asked, list) else [] if asked is None else [asked]
    if any(reporter not in _LOCAL_REPORTERS for reporter in reporters):
        yield ("report_to",), asked, "it reports the run to others"


def _granted(path: tuple[str, ...], given: Mapping[str, Any]) -> Any:
    """What the command line says for a field, by its own name or within a section given whole."""
    for length in range(len(path), 0, -1):
        name = ".".join(path[:length])
        if name in given:
            value = given[name]
            for key in path[length:]:
                value = _mapping(value).get(key)
            return value
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
