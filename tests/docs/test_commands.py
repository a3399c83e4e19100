"""Every block of code in a page is one that works: commands parse, recipes load, Python compiles."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml

from linearard.cli.main import _split, build_parser
from linearard.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").rglob("*.md")} - {ROOT / "docs" / "LOG.md"})
#: Programs that are not ours, which a page may begin with.
_OTHERS = (
    "pip install",
    "git clone",
    "cd ",
    "ollama create",
    "llama-quantize",
    "vllm serve",
    "tensorboard",
)
_RECIPES = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


def blocks(page, *languages):
    """Code blocks of a page that begin with one of these words behind the fence."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    return [code for language, code in found if language in languages]


def check_command(line):
    """Refuse a command line that would not be understood."""
    if line.startswith(_OTHERS):
        return
    words = [word for word in shlex.split(line, comments=True) if word != "..."]
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in targets, line
        return
    if words[0] == "python":
        name = (
            words[2] if words[2].count(".") or words[2] != "benchmarks" else "benchmarks.__main__"
        )
        assert words[1] == "-m" and importlib.util.find_spec(name), line
        return
    if words[0] == "sbatch":
        assert (ROOT / words[1]).is_file(), line
        words = ["linearard", "train", *words[2:]]
    if words[:2] == ["accelerate", "launch"]:
        assert (ROOT / words[words.index("--config_file") + 1]).is_file(), line
    if words[0] in ("torchrun", "accelerate"):
        words = words[words.index("-m") + 1 :]
    assert words[0] == "linearard", f"no test knows how to check: {line}"
    rest, overrides = _split(words[1:])
    if rest == ["--version"]:
        return
    args = build_parser().parse_args(rest)
    recipe = getattr(args, "recipe", None)
    if recipe in _RECIPES:
        load_recipe(recipe, overrides)


def flat(tree, prefix=""):
    """A mapping of sections as fields by dotted name."""
    found = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        deeper = isinstance(value, dict) and key not in ("relations", "texts", "rope", "data")
        found |= flat(value, f"{name}.") if deeper and value else {name: value}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_parse(page):
    for block in blocks(page, "", "sh", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"[a-z]+ ", line) and not line.startswith(" "):
                check_command(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_recipes_load(page):
    """A part of a recipe is one of the recipe that the results are of; others have their own tests."""
    for block in blocks(page, "yaml"):
        content = yaml.safe_load(block)
        if (
            "arms" not in content and "output_type" not in content
        ):  # lm-eval's: run in tests/evaluation
            values = {name: yaml.safe_dump(value) for name, value in flat(content).items()}
            load_recipe("smollm2-135m-64k", values)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_compiles_and_its_imports_are_there(page):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")
        for line in re.findall(r"^(?:from linearard|import ).*(?:\((?:.|\n)*?\))?$", block, re.M):
            exec(line, {})


@pytest.mark.parametrize(
    "line", ["linearard trian x", "make nothing", "python -m benchmarks.nothing", "curl x"]
)
def test_what_does_not_work_is_seen(line):
    with pytest.raises((AssertionError, SystemExit)):
        check_command(line)
