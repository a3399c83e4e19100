"""Help is fast, complete and true."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
import time
from importlib import metadata

import pytest

from linearard.cli import main as command_line
from linearard.cli.fields import fields_text, kept_text
from linearard.cli.main import _WHOLE, _split, build_parser, main
from linearard.recipe import Recipe, load_recipe

COMMANDS = ("restore", "train", "evaluate", "export")


def help_of(capsys, *command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_first_help_is_fast():
    """Nothing heavy is imported before a command is known."""
    code = (
        "import sys; from linearard.cli.main import build_parser; build_parser().format_help(); "
        "print(*sorted({'torch', 'numpy', 'transformers', 'datasets', 'yaml'} & sys.modules.keys()))"
    )
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "\n", result.stderr
    assert time.monotonic() - start < 1 or os.getloadavg()[0] > os.cpu_count()


@pytest.mark.parametrize("command", [*COMMANDS, "plan", "report", "push", "sweep"])
def test_no_help_imports_what_takes_seconds(command):
    """Each within 1.5 s, which PyTorch alone would take."""
    code = (
        "import sys; from linearard.cli.main import main\n"
        f"try:\n    main(['{command}', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'datasets', 'peft', 'yaml', 'tqdm'}\n"
        "print('imported:', *sorted(heavy & sys.modules.keys()))"
    )
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "imported:", result.stderr
    assert time.monotonic() - start < 1.5 or os.getloadavg()[0] > os.cpu_count()


def test_the_fields_in_the_help_are_those_of_the_classes():
    """After a change: python -m linearard.cli.fields."""
    assert kept_text() == fields_text()


def test_every_command_is_named_and_explained(capsys):
    text = help_of(capsys)
    for command in COMMANDS:
        assert re.search(rf"^    {command}\s+\w", text, re.MULTILINE)
        own = help_of(capsys, command)
        assert own.startswith(f"usage: linearard {command}")
        for option in ("--quiet", "--debug"):
            assert option in own


def test_train_lists_every_field(capsys):
    """Each field with its meaning: what a message or a recipe names can be looked up."""
    from linearard.data import DataConfig
    from linearard.distill import ObjectiveConfig
    from linearard.evaluation import EvaluationConfig
    from linearard.model import AdapterConfig, ModelConfig

    text = help_of(capsys, "train")
    kinds = (ModelConfig, AdapterConfig, DataConfig, ObjectiveConfig, EvaluationConfig)
    for kind in kinds:
        for field in dataclasses.fields(kind):
            assert re.search(rf"^  {field.name}\b", text, re.MULTILINE), field.name
            assert field.metadata["help"].split()[0] in text
    for name in ("window", "sequences", "lr_floor", "learning_rate", "gradient_checkpointing"):
        assert re.search(rf"^  {name}\b", text, re.MULTILINE)
    assert "original_max_position_embeddings" in text and "TrainingArguments" in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_a_help_are_command_lines(command, capsys):
    """Each parses, and each recipe it names is there."""
    text = help_of(capsys, command) + help_of(capsys)
    examples = re.findall(rf"^ +(?:\S+ )*linearard ({command} .*?)(?:  .*)?$", text, re.MULTILINE)
    assert examples
    for example in examples:
        rest, overrides = _split(shlex.split(example))
        args = build_parser().parse_args(rest)
        if command == "train" and args.recipe != "my.yaml":
            load_recipe(args.recipe, overrides)


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"linearard {metadata.version('linearard')}\n"


def test_whole_sections_are_the_recipes():
    """What may be replaced whole on the command line follows the recipe's own fields."""
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert set(_WHOLE) == fields - {"source", "model"}  # `restore` has a model of its own


@pytest.mark.parametrize(
    ("words", "rest", "overrides"),
    [
        (["train", "r", "--a.b", "3"], ["train", "r"], {"a.b": "3"}),
        (["train", "--a.b", "3", "r"], ["train", "r"], {"a.b": "3"}),
        (["train", "--a.b=-3", "r", "--resume"], ["train", "r", "--resume"], {"a.b": "-3"}),
        (["train", "r", "--a.b", "-3e-4"], ["train", "r"], {"a.b": "-3e-4"}),
        (["train", "r", "--a.b", "x=y"], ["train", "r"], {"a.b": "x=y"}),
        (["train", "r", "--seed", "1", "--quiet"], ["train", "r", "--quiet"], {"seed": "1"}),
        (["restore", "a.b/c.d", "--seed", "1"], ["restore", "a.b/c.d", "--seed", "1"], {}),
        (["train", "r", "--a.b", "1", "--a.b", "2"], ["train", "r"], {"a.b": "2"}),
    ],
)
def test_fields_anywhere_on_the_command_line(words, rest, overrides):
    assert _split(words) == (rest, overrides)


def test_interruptions_of_other_commands_promise_no_resume(monkeypatch, capsys):
    def run(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line.export, "run", run)
    assert main(["export", "run", "out"]) == 130
    assert capsys.readouterr().err == "linearard: interrupted\n"
