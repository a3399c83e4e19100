"""The one direction of imports, what a bare import costs, and the size of files (CONTRIBUTING.md)."""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "linearard"
FILES = sorted(SOURCE.rglob("*.py"))
#: Packages from the lowest to the highest level; those of one level never import each other.
LEVELS = [
    {"ops"},
    {"rope", "capture"},
    {"model"},
    {"distill", "data"},
    {"counting"},
    {"evaluation", "export"},
    {"recipe"},
    {"train"},
    {"sweep", "planning", "pipeline"},
    {"restore"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
EVERYWHERE = {"architectures", "errors", "fields", "interruption", "processes", "storage"}


def name_of(path):
    return str(path.relative_to(SOURCE))


@cache
def imports(path):
    """Dotted names of all imports of a file, those inside functions too, but not those for types."""
    tree, found = ast.parse(path.read_text()), []
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    package = ("linearard", *path.relative_to(SOURCE).parent.parts)
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return found


def top(name):
    return name.split(".")[0]


def imports_at_import(path):
    """Dotted names of the imports that run when the file itself is imported."""
    body, found = list(ast.parse(path.read_text()).body), []
    while body:
        node = body.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body += list(ast.iter_child_nodes(node))
    return found


def test_every_package_has_a_level():
    packages = {p.parent.name for p in SOURCE.glob("*/__init__.py")}
    assert packages == LEVEL.keys()
    assert {p.stem for p in SOURCE.glob("*.py")} == {"__init__", "__main__", *EVERYWHERE}


def test_imports_go_one_direction():
    wrong = []
    for path in FILES:
        own = path.relative_to(SOURCE).parts[0]
        for name in imports(path) if path.parent != SOURCE else ():
            parts = name.split(".")
            if parts[0] != "linearard" or len(parts) == 1:
                continue
            other = parts[1]
            if other == own or other in EVERYWHERE:
                continue
            assert other in LEVEL, f"{name_of(path)}: {name} is no package of this project"
            if LEVEL[other] >= LEVEL[own]:
                wrong.append(f"{name_of(path)} imports {name}, which is not below it")
    assert not wrong


@pytest.mark.parametrize("name", sorted(EVERYWHERE))
def test_what_all_may_import_imports_next_to_nothing(name):
    below = {"fields": "linearard.errors", "interruption": "linearard.processes"}.get(name)
    found = [n for n in imports(SOURCE / f"{name}.py") if top(n) == "linearard"]
    assert not [n for n in found if not (below and n.startswith(below))]


def test_triton_is_imported_in_its_folder_alone():
    found = {
        name_of(path): where
        for path in FILES
        if not (path.parent.name == "triton" and path.is_relative_to(SOURCE / "ops"))
        and (where := {n for n in imports(path) if top(n) == "triton"})
    }
    # to ask Triton itself whether it interprets is the one exception, behind a check that it is there
    asking = found.pop(name_of(SOURCE / "ops" / "relation_kl" / "api.py"), set())
    assert not found and asking <= {"triton", "triton.knobs"}


def test_operations_know_torch_alone():
    allowed = {"torch", "triton", "linearard", *sys.stdlib_module_names}
    found = {
        name_of(path): others
        for path in FILES
        if path.is_relative_to(SOURCE / "ops")
        and (others := {top(n) for n in imports(path)} - allowed)
    }
    assert not found


def test_heavy_libraries_are_imported_where_they_are_used():
    found = {}
    for path in FILES:
        heavy = {"datasets", "matplotlib", "peft", "gguf"}
        if path.parent.name not in (
            "recipe",
            "train",
        ):  # their classes derive from those of transformers
            heavy |= {"transformers"}
        found[name_of(path)] = heavy & {top(n) for n in imports_at_import(path)}
    assert not {name: heavy for name, heavy in found.items() if heavy}


def test_files_are_short():
    lines = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert max(lines.values()) < 400, max(lines, key=lines.get)


def run(code, *, timeout=120):
    """Run Python in a process of its own; its standard output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_else():
    out = run(
        "import sys, linearard\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'torch', 'transformers', 'datasets', 'matplotlib', 'peft', 'triton'}))"
    )
    assert out.strip() == "[]"


def test_packages_below_training_do_not_load_transformers():
    out = run(
        "import sys\n"
        "import linearard.ops.relation_kl, linearard.rope, linearard.capture, linearard.model\n"
        "import linearard.distill, linearard.data, linearard.evaluation, linearard.export\n"
        "print(sorted({'transformers', 'datasets', 'matplotlib', 'peft'} & set(sys.modules)))"
    )
    assert out.strip() == "[]"


def test_without_triton_everything_but_triton_works():
    run(
        "import sys\n"
        "sys.modules['triton'] = None  # as if it were not installed\n"
        "import torch, linearard\n"
        "from linearard.errors import OperandError\n"
        "x = torch.randn(1, 2, 9, 4)\n"
        "y = torch.randn(1, 2, 9, 4, requires_grad=True)\n"
        "assert torch.isclose(linearard.relation_kl(x, y),\n"
        "                     linearard.relation_kl(x, y, implementation='reference'))\n"
        "linearard.attention_kl(x, x, y, y).backward()\n"
        "assert y.grad.abs().max() > 0\n"
        "try:\n"
        "    linearard.relation_kl(x, y, implementation='triton')\n"
        "except OperandError as error:\n"
        "    assert 'Install triton' in str(error)\n"
        "else:\n"
        "    raise AssertionError('an explicit choice fell back silently')\n"
    )


def test_every_public_name_is_there():
    import linearard

    assert set(linearard.__all__) <= set(dir(linearard))
    for name in linearard.__all__:
        thing = getattr(linearard, name)
        assert thing.__name__ == name and thing.__doc__
    with pytest.raises(AttributeError, match="no attribute 'RestoredModel'"):
        _ = linearard.RestoredModel


def test_public_names_are_told_to_type_checkers_too():
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    told = {alias.asname or alias.name: n.module for n in block.body for alias in n.names}
    import linearard

    assert told == linearard._HOMES and sorted(told) == linearard.__all__
