"""YAML as users mean it: numbers such as 2e-5, words such as no, and no name twice."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import yaml

from linearard.errors import RecipeError, shown
from linearard.recipe.plain_data import plain_data

_LARGEST_FILE = 1 << 20  # bytes; a recipe has a few thousand


def read_yaml(path: Any, kind: str, fix: str) -> Any:
    """The plain data of a YAML file.

    Args:
        path: the file, a `Path` or a resource of a package.
        kind: what it should be, as a noun phrase.
        fix: what to do where it cannot be read.

    Raises:
        RecipeError: it cannot be read, is too large, or holds no valid YAML.
    """
    path = Path(path) if isinstance(path, str) else path
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        text = content.decode("utf-8")
    except (OSError, ValueError) as error:  # also what is no path at all
        raise RecipeError(
            expected=kind,
            got=f"{shown(str(path))[1:-1]}: {getattr(error, 'strerror', None) or error}",
            fix=fix,
        ) from None
    if len(content) > _LARGEST_FILE:
        raise RecipeError(
            expected=f"{kind}, of at most {_LARGEST_FILE >> 20} MiB", got=f"more in {path}", fix=fix
        )
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Safe YAML in which `2e-5` is a number, as in YAML 1.2 and in everybody's recipes.

    Raises:
        RecipeError: no valid YAML, or more than plain values; the place is named.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise RecipeError(
            expected=f"values in {where} that are not nested hundreds of levels deep",
            got="more levels than YAML can be read with",
            fix="Take brackets away.",
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        problem = shown(problem.replace("\t", "\\t"))[1:-1]
        raise RecipeError(
            expected=f"valid YAML in {where}", got=place + problem, fix="Correct it there."
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # of a value with a tag
        raise RecipeError(
            expected=f"valid YAML in {where}",
            got=f"a value that does not fit its tag: {shown(str(error))[1:-1]}",
            fix="Correct it, or leave the tag out.",
        ) from None
    return plain_data(value, where)


class _Loader(yaml.SafeLoader):
    # As in YAML 1.2, `no` and `off` are words: `save_strategy: no` means what it says. Neither are there
    # dates, nor numbers to the base of 60.
    yaml_implicit_resolvers: typing.ClassVar = {
        first: [
            (tag, regexp)
            for tag, regexp in resolvers
            if tag.rpartition(":")[2] not in ("bool", "int", "float", "timestamp")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a name given twice: plain YAML keeps the last one in silence."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a list or a mapping in the place of a name",
                    problem_mark=key.start_mark,
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge `<<`, and keep each name once: mappings merged many times over would fill the memory."""
        super().flatten_mapping(node)
        last = {key.value: (key, value) for key, value in node.value if _is_scalar(key)}
        node.value = [pair for pair in node.value if not _is_scalar(pair[0])] + list(last.values())

    def construct_number(self, node: yaml.ScalarNode) -> int:
        """A whole number in base 10, or 16, 8, 2 with a prefix; leading zeros mean nothing."""
        text = self.construct_scalar(node).replace("_", "").lower()
        try:
            return int(text, 0 if re.match(r"[-+]?0[xob]", text) else 10)
        except ValueError:  # Python reads no number of thousands of digits
            raise yaml.MarkedYAMLError(
                problem=f"a number of {len(text)} digits", problem_mark=node.start_mark
            ) from None


def _is_scalar(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
