"""What the tests of the command line share."""

import pytest

import small_run
from linearard.cli.main import main
from linearard.errors import UserError


@pytest.fixture
def no_model(monkeypatch):
    """Loading weights would fail the test."""

    def load(config, *arguments):
        raise AssertionError(f"loaded the weights of {config.name}")

    monkeypatch.setattr("linearard.model.restorable.load_model", load)


@pytest.fixture
def recipe(tmp_path, base_folder):
    """A small recipe as plain data."""
    return small_run.small_recipe(tmp_path, base_folder)


@pytest.fixture
def refusal(capsys):
    """Run a command that must be refused; the one line it ends with.

    With --debug the same error comes as a traceback.
    """

    def run(command, *arguments):
        capsys.readouterr()
        assert main([command, "--quiet", *arguments]) == 2
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        assert line.startswith("linearard: error: expected ") and ", got " in line
        assert line.endswith((".", "?"))
        assert captured.out == ""
        with pytest.raises(UserError) as error:
            main([command, "--debug", "--quiet", *arguments])
        assert line == f"linearard: error: {error.value}"
        return line

    return run


@pytest.fixture(scope="module")
def trained(base_folder, tmp_path_factory):
    """A finished run of one stage."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = small_run.one_stage(folder, base_folder, sequences=4, save_steps=2)
    return small_run.train(recipe)
