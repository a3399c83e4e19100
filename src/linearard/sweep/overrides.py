"""Changes of a recipe, by dotted name: how a sweep says what an arm is.

A nested mapping and dotted names mean the same: `stages: {cpt: {window: 64}}` is `stages.cpt.window: 64`.
Nesting ends at the recipe's sections. Every other mapping (`rope`, an objective's `relations`, …) is one
value and replaces what stood there.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

from linearard.errors import RecipeError
from linearard.recipe import Recipe, recipe_from_dict

Changes = dict[str, Any]

_SECTIONS = {("model",), ("adapter",), ("data",), ("evaluation",), ("stages",)}
_IN_A_STAGE = {(), ("objective",), ("data",), ("parts",)}  # and in each of its parts
#: What the sweep itself decides for every run.
_DECIDED = {
    "output_dir": "Set output_dir of the sweep.",
    "seed": "List the seeds of the sweep in seeds.",
}


def flatten(values: Mapping[str, Any], where: str) -> Changes:
    """Changes by dotted name, sections unfolded, in the order given.

    Args:
        values: dotted names or nested mappings.
        where: what they belong to, for messages.

    Raises:
        RecipeError: a field is named twice, or both itself and through a part of it; a section is
            empty; or it is a field that the sweep decides.
    """
    changes: Changes = {}
    for path, value in _leaves(values, (), where):
        name = ".".join(path)
        if fix := _DECIDED.get(path[0]):
            raise RecipeError(expected=f"{where} without {name!r}", got=f"{name}: {value}", fix=fix)
        for other in changes:
            if name == other or name.startswith(f"{other}.") or other.startswith(f"{name}."):
                raise RecipeError(
                    expected=f"each field once in {where}",
                    got=f"{other!r} and {name!r}" if name != other else f"{name!r} twice",
                    fix="Keep one of them.",
                )
        changes[name] = value
    return changes


def changed_recipe(
    base: Mapping[str, Any],
    levels: Iterable[Changes],
    seed: int,
    *,
    allowed: Mapping[str, Any] | None = None,
) -> Recipe:
    """The base with every level of changes, the later over the earlier.

    `stages.NAME: null` removes a stage, `stages.NAME.parts.PART: null` a part of it, `stages: null`
    all stages. A recipe without stages is checked as if it had those of the base, and then has none.

    Args:
        base: as a recipe file has it.
        levels: changes by dotted name.
        seed: of the run.
        allowed: what the command line says, by dotted name; it may allow more than the file of a sweep.

    Raises:
        RecipeError: the changed recipe is wrong, an unknown stage is removed or changed, or it asks for
            what only the command line may allow.
    """
    source = copy.deepcopy(dict(base))
    stages = source.get("stages")
    left = stages if isinstance(stages, dict) else {}
    fields: Changes = {}
    for changes in levels:
        for name, value in changes.items():
            path = name.split(".")
            # What was set below a name does not outlive a later change of the whole.
            below = [k for k in fields if k == name or k.startswith(f"{name}.")]
            fields = {k: v for k, v in fields.items() if k not in below}
            if path[0] == "stages":
                _check_there(path, value, left, bool(below))
            if value is None and _is_removable(path):
                left = _without(left, path[1:])
            else:
                fields[name] = value
    if left:
        source["stages"] = left
    # Letters as they are: YAML takes the two halves that JSON escapes a rare one into for two.
    texts = {
        name: json.dumps(value, default=str, ensure_ascii=False) for name, value in fields.items()
    }
    recipe = recipe_from_dict(source, texts | {"seed": str(seed)}, allowed=allowed or {})
    if not left:
        recipe.stages, recipe.source["stages"] = {}, None
    return recipe


def _leaves(
    values: Mapping[str, Any], prefix: tuple[str, ...], where: str
) -> Iterable[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        path = (*prefix, *str(key).split("."))
        if not isinstance(value, Mapping) or not _is_section(path):
            yield path, value
        elif value:
            yield from _leaves(value, path, where)
        else:
            raise RecipeError(
                expected=f"fields of {'.'.join(path)} in {where}, or null",
                got="an empty mapping",
                fix="Remove it.",
            )


def _is_section(path: tuple[str, ...]) -> bool:
    if path[0] != "stages" or len(path) == 1:
        return path in _SECTIONS
    inner = path[2:]
    if inner[:1] == ("parts",) and len(inner) > 1:
        inner = inner[2:]
    return inner in _IN_A_STAGE


def _is_removable(path: list[str]) -> bool:
    """Whether null takes something away: all stages, a stage, or a part of one."""
    return path[0] == "stages" and (len(path) <= 2 or (len(path) == 4 and path[2] == "parts"))


def _check_there(path: list[str], value: Any, stages: Mapping[str, Any], set_before: bool) -> None:
    def refuse(kind: str, known: Iterable[str]) -> None:
        raise RecipeError(
            expected=f"a {kind} of the base that is still there ({', '.join(known) or 'none'})",
            got=".".join(path),
            fix="Correct the name. A stage that only some arms have belongs into a base of theirs, or "
            "into the base of all, where null removes it.",
        )

    if len(path) > 1 and path[1] not in stages:
        refuse("stage", stages)
    if len(path) == 4 and value is None and _is_removable(path) and not set_before:
        parts = (stages[path[1]] or {}).get("parts") or {}
        if path[3] not in parts:
            refuse("part", parts)


def _without(tree: Mapping[str, Any], path: list[str]) -> dict[str, Any]:
    """A mapping without what stands at a path; without anything for the empty path."""
    if not path:
        return {}
    first, *rest = path
    if not rest:
        return {key: value for key, value in tree.items() if key != first}
    return {**tree, first: _without(tree.get(first) or {}, rest)}
