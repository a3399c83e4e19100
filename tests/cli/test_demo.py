"""The demo is a recipe and three short options; here with a tiny model in the place of the real one."""

from pathlib import Path

import pytest
import yaml

import small_run
from linearard.cli.main import main

TINY = {
    "stages.alignment.window": "48",
    "stages.alignment.sequences": "4",
    "stages.restoration.window": "48",
    "stages.restoration.sequences": "4",
    "evaluation": "{perplexity_windows: [32], agreement_window: 32, passkey_lengths: []}",
    "model.dtype": "float32",
}


@pytest.fixture
def arguments(tmp_path, base_folder, monkeypatch):
    """Options of the demo in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    text = small_run.write_text(tmp_path / "text", documents=40, words=60)
    fields = [f"--{name}={value}" for name, value in TINY.items()]
    options = ["--model", str(base_folder), "--text", str(text), "--data.cache_dir", "cache"]
    return ["demo", *options, *fields, "--quiet"]


def test_options_fields_and_report(arguments, base_folder, tmp_path, capsys):
    # A path that YAML alone would read as a number.
    assert main([*arguments, "--output-dir", "2024"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"Stretching {base_folder} by 8 and restoring it on")
    assert "the report will be in 2024." in captured.err
    assert captured.out.splitlines()[0].split() == [
        "original",
        "stretched",
        "after",
        "alignment",
        "restored",
        "recovered",
    ]
    run = Path("2024")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["output_dir"] == "2024" and recipe["adapter"] == {"kind": "direct"}
    assert recipe["stages"]["restoration"]["window"] == 48
    assert recipe["stages"]["restoration"]["learning_rate"] == 1e-3  # the demo's own
    assert (run / "report.html").stat().st_size > 10_000


def test_again(arguments, capsys):
    """A second demo is refused, resumed or replaced like any run."""
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "Give --resume to go on, --overwrite to replace" in capsys.readouterr().err
    before = small_run.final_bytes(Path("runs/demo"))
    for flag in ("--resume", "--overwrite"):
        assert main([*arguments, flag]) == 0
        assert small_run.final_bytes(Path("runs/demo")) == before
