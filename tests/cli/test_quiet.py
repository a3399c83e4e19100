"""What a run prints: bars unless asked not to, a table on standard output, one voice."""

import re
import subprocess
import sys

import pytest
from transformers.utils import logging

import small_run
from linearard.cli import main as command_line
from linearard.cli.main import main

EVALUATION = {
    "perplexity_windows": [32],
    "perplexity_tokens": 512,
    "agreement_window": 32,
    "agreement_tokens": 512,
    "passkey_lengths": [],
}


@pytest.fixture
def recipe(tmp_path, base_folder):
    recipe = small_run.one_stage(tmp_path, base_folder, sequences=4)
    recipe["evaluation"] = EVALUATION
    return small_run.write_recipe(recipe, tmp_path / "recipe.yaml")


@pytest.fixture
def loud():
    """Progress bars of the libraries as in a fresh process."""
    logging.enable_progress_bar()
    logging.set_verbosity_warning()  # what is above silences the trainer, and other tests have set it
    yield
    logging.enable_progress_bar()


def in_a_new_interpreter(*arguments):
    """The command line as a user starts it; most other tests fork it from one that has imported all."""
    command, environment = small_run.command(*arguments), small_run.environment()
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_quiet_prints_results_alone(recipe, tmp_path):
    """As a user starts it: no bar of ours, of Trainer, of transformers or of tqdm."""
    result = in_a_new_interpreter("train", str(recipe), "--quiet")
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    lines = result.stderr.splitlines()
    assert re.fullmatch(r"stage only: 4 steps, 192 tokens, \d+\.\d s", lines[0])
    assert lines[1:] == [f"checkpoint: {run / 'final'}", f"report: {run / 'report.html'}"]
    table = result.stdout.splitlines()
    assert table[0].split()[:3] == ["original", "stretched", "restored"]
    assert any(line.startswith("perplexity, 32 tokens") for line in table)
    assert (run / "evaluation.json").exists() and (run / "report.html").exists()


def test_bars_are_there_otherwise(recipe, loud, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["train", str(recipe)]) == 0
    printed = capsys.readouterr().err
    assert "only: 100%" in printed and "loss=" in printed and "q=" in printed
    assert "tok/s=" in printed


def test_a_log_gets_lines(tmp_path, base_folder, loud, capsys, monkeypatch):
    """Where standard error is no terminal: no bar of anybody, and a line for whatever lasts."""
    monkeypatch.setattr("linearard.data.progress.LINE_SECONDS", 1e-9)  # all does
    recipe = small_run.one_stage(tmp_path, base_folder, sequences=4)
    recipe["data"]["train"] = "self"
    path = small_run.write_recipe(recipe | {"evaluation": EVALUATION}, tmp_path / "recipe.yaml")
    assert main(["train", str(path)]) == 0
    trained = capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    for text in (trained, measured := capsys.readouterr().err):
        assert "\r" not in text and "%|" not in text
        assert re.search(r"^restored: perplexity.*: 1.*, \d+ s$", text, re.MULTILINE)
    assert re.search(r"^writing.*: .* tokens, \d+ s$", trained, re.MULTILINE)
    assert re.search(r"^only: 4 of 4 steps, \d+ s, loss=.*tok/s=[\d,]+$", trained, re.MULTILINE)
    assert "only: " not in measured


def test_quiet_switches_off_bars_of_libraries(recipe, loud, capsys):
    assert logging.is_progress_bar_enabled()
    assert main(["train", str(recipe), "--quiet"]) == 0
    assert not logging.is_progress_bar_enabled()
    assert "%" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_the_other_commands_are_quiet_too(command, recipe, tmp_path, loud, capsys):
    assert main(["train", str(recipe), "--quiet", "--evaluation", "null"]) == 0
    capsys.readouterr()
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    arguments = [run, "--output-dir", out] if command == "evaluate" else [run, out]
    assert main([command, *arguments, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "|" not in captured.err and "it/s" not in captured.err
    expected = "report:" if command == "evaluate" else "exported to"
    lines = 1 if command == "evaluate" else 2  # what the merge keeps is one of its own
    assert captured.err.startswith(expected) and len(captured.err.splitlines()) == lines


def test_another_process_waits_before_it_complains(monkeypatch, capsys):
    """A launcher ends it in that time, if the first process met the same error."""
    slept = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(command_line.time, "sleep", slept.append)
    assert main(["train", "nowhere.yaml"]) == 2
    assert slept == [command_line._PATIENCE_SECONDS]
    assert capsys.readouterr().err.startswith("linearard: (process 1) error: expected a recipe")


def test_an_error_in_a_process_of_its_own():
    """The exit code a shell sees, and nothing but the line."""
    result = in_a_new_interpreter("train", "recipe.yaml", "--rope.factor")
    assert result.returncode == 2 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and "a value after --rope.factor" in result.stderr
