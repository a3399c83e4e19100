"""Load single modules of a package that is too large to import, the rest of it replaced by stand-ins.

Used by the scripts beside this file, each in a process of its own; nothing here imports linearard.
"""

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import torch

_ABSENT = ("rl_on_policy_target",)  # what code compares with None


class Layer(torch.nn.Module):
    """Stands for base classes that choose among kernels; `register` is a decorator there."""

    def __init__(self, *_, **__):
        super().__init__()

    @classmethod
    def register(cls, *_, **__):
        return lambda decorated: decorated

    @classmethod
    def enabled(cls):
        return False


class Nothing:
    """Answers no to whatever it is asked."""

    def __call__(self, *_, **__):
        return self

    def __bool__(self):
        return False

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return None if name in _ABSENT else self


class _StandIn(types.ModuleType):
    """A module in which every name exists and answers no to what it is asked."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("CustomOp", "BaseFusedOp"):
            return Layer
        return (lambda: True) if name == "is_cpu" else Nothing()


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the real modules below `real`, stand-ins for every other one of the package."""

    def __init__(self, package: str, real: str, root: Path) -> None:
        self.package, self.real, self.root = package, real, root

    def find_spec(self, name, path=None, target=None):
        if name != self.package and not name.startswith(f"{self.package}."):
            return None
        if name.startswith(self.real):
            below = self.root.joinpath(*name.split("."))
            file = below / "__init__.py" if below.is_dir() else below.with_suffix(".py")
            if file.is_file():
                return importlib.util.spec_from_file_location(
                    name, file, submodule_search_locations=[str(below)] if below.is_dir() else None
                )
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        module.__path__ = ()


def stand_in(package: str, real: str, root: Path) -> None:
    """Import `real` from the package's folder below `root`, and nothing else of the package."""
    sys.meta_path.insert(0, StandIns(package, real, root))


def functions_of(path: Path, names: list[str], given: dict) -> dict:
    """Functions of a file by name, run with `given` in place of the file's other names."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list = []
            node.returns = None
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                argument.annotation = None
            if node.name not in given:
                exec(compile(ast.Module([node], []), str(path), "exec"), given)
    return given
