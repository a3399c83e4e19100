"""What the tables of bad input share: a small recipe, and a command that has to be refused."""

from pathlib import Path

import pytest

import small_run
import tiny
from linearard.cli.main import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base model, text and a recipe; nothing in it may change."""
    folder = tmp_path_factory.mktemp("place")
    base = tiny.save_tiny_base(folder / "base")
    recipe = small_run.small_recipe(folder, base)
    recipe["stages"]["mixed"] = {"parts": {"one": {"window": 48, "sequences": 4}}}
    small_run.write_recipe(recipe, folder / "recipe.yaml")
    return folder


@pytest.fixture
def refused(place, capsys, monkeypatch):
    """Run a command that must end in one line, exit code 2, without weights read or anything written.

    Returns the line.
    """

    def load(config, *arguments):
        raise AssertionError(f"loaded the weights of {config.name}")

    monkeypatch.setattr("linearard.model.restorable.load_model", load)
    monkeypatch.setattr("linearard.sweep.bench.load_model", load)
    monkeypatch.chdir(place)
    before = contents(place)

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert main([*map(str, arguments), "--quiet"]) == 2, arguments
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("linearard: error: expected ") and ", got " in lines[0], lines
        assert lines[0].endswith((".", "?")) and len(lines[0]) < 2000, lines
        assert captured.out == ""
        return lines[0]

    yield run
    assert contents(place) == before


def contents(folder: Path) -> set[Path]:
    """Everything in a folder, but the token cache, which may be filled before a later refusal."""
    return {p for p in folder.rglob("*") if not p.is_relative_to(folder / "cache")}
