"""YAML as users mean it: numbers such as 2e-5, words such as no, and no name twice."""

from __future__ import annotations

import re
import typing
from typing import Any

import yaml

from linearard.errors import RecipeError


def parse_yaml(text: str, where: str) -> Any:
    """Safe YAML in which `2e-5` is a number, as in YAML 1.2 and in everybody's recipes.

    Raises:
        RecipeError: no valid YAML; the place is named.
    """
    try:
        return unshared(yaml.load(text, Loader=_Loader))
    except RecursionError:
        raise RecipeError(
            expected=f"plain values in {where}",
            got="an alias within what it names",
            fix="Write the value out.",
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        problem = problem.replace("\t", "\\t")
        raise RecipeError(
            expected=f"valid YAML in {where}", got=place + problem, fix="Correct it there."
        ) from None


def unshared(value: Any) -> Any:
    """A copy of plain data in which no mapping or list stands in two places.

    Two places with one YAML alias are two values: a change of one is none of the other.
    """
    if isinstance(value, dict):
        return {key: unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unshared(item) for item in value]
    return value


class _Loader(yaml.SafeLoader):
    # As in YAML 1.2, `no` and `off` are words: `save_strategy: no` means what it says.
    yaml_implicit_resolvers: typing.ClassVar = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a name given twice: plain YAML keeps the last one in silence."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
