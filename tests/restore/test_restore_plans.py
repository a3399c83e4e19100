"""What `restore` decides before weights are read: models of known shape by their configuration alone."""

import math

import pytest
import transformers
import yaml

import small_run
import tiny
from linearard.cli.main import main
from linearard.errors import RecipeError
from linearard.restore import parse_tokens, parse_window

LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
#: Class, configuration, window asked for, native window.
SHAPES = {
    "llama2-7b": (
        "LlamaConfig",
        LLAMA | {"intermediate_size": 11008, "max_position_embeddings": 4096},
        "32k",
        4096,
    ),
    "llama3-8b": (
        "LlamaConfig",
        LLAMA
        | {
            "vocab_size": 128256,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
        },
        "32k",
        8192,
    ),
    "mistral-7b": (
        "MistralConfig",
        LLAMA
        | {
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
        },
        "32k",
        8192,
    ),
    "qwen3-4b": (
        "Qwen3Config",
        {
            "vocab_size": 151936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
        },
        "128k",
        40960,
    ),
    "gemma3-4b": (
        "Gemma3TextConfig",
        {
            "vocab_size": 262208,
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "sliding_window": 1024,
        },
        "256k",
        131072,
    ),
    "phi3-mini": (
        "Phi3Config",
        {
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
        },
        "16k",
        4096,
    ),
}


def dry(base, folder, *options):
    return main(["restore", str(base), "--output", str(folder), "--dry-run", "--quiet", *options])


@pytest.mark.parametrize("memory", ["24GB", "80GB"])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_plan_for_a_configuration_alone(name, memory, tmp_path, capsys):
    kind, values, window, native = SHAPES[name]
    base = tmp_path / "base"
    getattr(transformers, kind)(**values).save_pretrained(base)
    options = ["--window", window, "--gpu-memory", memory]
    if native != values["max_position_embeddings"]:
        options += ["--native-window", str(native)]
    assert dry(base, tmp_path / "out", *options) == 0
    said = capsys.readouterr().err
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe["rope"]["factor"] == pytest.approx(1.25 * parse_window(window) / native)
    assert recipe["adapter"]["kind"] == "lora"
    (line,) = [line for line in said.splitlines() if line.startswith("planned:")]
    needed, limit = float(line.split()[1]), float(line.split("(of ")[1].split()[0])
    assert needed <= limit <= 0.91 * float(memory[:2]) * 1e9 / 2**30
    (windows,) = [line for line in said.splitlines() if line.startswith("windows:")]
    longest = max(part["window"] for part in recipe["stages"]["restoration"]["parts"].values())
    assert f" of {longest:,} tokens (" in windows
    assert ("instead of" in windows) == ("warning: no window above" in said)
    for line in said.splitlines()[:6]:
        assert line.endswith(")") and " (" in line  # a choice with its reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "32"], "expected a window above 64"),
        (["--window", "far"], "expected a number of tokens"),
        (["--window", "256", "--scaling", "ntk"], "expected --scaling to be one of yarn, linear"),
        (["--window", "256", "--adapter", "full"], "expected --adapter to be one of"),
        (["--window", "256", "--tokens", "0"], "expected a number of tokens"),
        (["--window", "256", "--data", "nowhere/text.txt"], "expected an existing file"),
        (["--window", "256", "--gpu-memory", "1MiB"], "with all that saves memory"),
        (["--window", "256", "--stages.alignment.muon", "maybe"], "muon"),
        (
            ["--window", "999999999999"],
            "expected --window to be a whole number from 32 to 100000000",
        ),
        (["--window", "256.5"], "for --window, got '256.5'"),
        (["--window", "256", "--tokens", "1e14"], "expected --tokens to be"),
        (["--window", "256", "--native-window", "0"], "for --native-window, got '0'"),
        (
            ["--window", "256", "--native-window", "2"],
            "--native-window to be a whole number from 16 to",
        ),
        (["--window", "256", "--native-window", "65"], "expected --native-window of at most 64"),
        (["--window", "256", "--evaluation", "null"], "by which the verdict is found, got none"),
        (["--window", "256", "--evaluation.views", "[original, restored]"], "one of original, res"),
        (["--window", "256", "--tasks", "nowhere"], "got nowhere (no such folder)"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(options, message, tmp_path, capsys):
    base = tiny.save_tiny_base(tmp_path / "base")
    assert dry(base, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_text_that_is_too_short_is_joined_and_filled_up(tmp_path, capsys):
    base = tiny.save_tiny_base(tmp_path / "base")
    text = small_run.write_text(tmp_path / "text", documents=12, words=30)
    options = ["--window", "256", "--data", str(text), "--tokens", "64k", "--gpu-memory", "8GiB"]
    assert dry(base, tmp_path / "out", *options) == 0
    said = capsys.readouterr().err
    assert "joined documents" in said
    assert "more text of the model's own" in said
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    parts = recipe["stages"]["restoration"]["parts"]
    tokens = sum(part["window"] * part["sequences"] for part in parts.values())
    tokens += sum(
        stage["window"] * stage["sequences"]
        for name, stage in recipe["stages"].items()
        if name != "restoration"
    )
    assert math.isclose(tokens, 64_000, rel_tol=0.25)


def test_numbers_of_tokens():
    assert parse_window("128k") == parse_window("131072") == parse_window("131_072") == 131072
    assert parse_tokens("4.2M") == 4_200_000
    assert parse_tokens("64k") == 64_000
    for wrong in ("", "k", "-5", "1e400", "nan", "12q"):
        with pytest.raises(RecipeError, match="expected a number of tokens"):
            parse_tokens(wrong)


def test_a_dry_run_can_be_repeated_with_other_choices(tmp_path, capsys):
    base = tiny.save_tiny_base(tmp_path / "base")
    assert dry(base, tmp_path / "out", "--window", "256") == 0
    assert dry(base, tmp_path / "out", "--window", "512") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert dry(base, tmp_path / "out", "--window", "512", "--overwrite") == 0
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe["rope"]["factor"] == 10


def test_windows_below_the_target_are_told(tmp_path, capsys):
    base = tiny.save_tiny_base(tmp_path / "base")
    options = ["--window", "256", "--gpu-memory", "8GiB"]
    assert dry(base, tmp_path / "whole", *options) == 0
    assert "warning" not in capsys.readouterr().err
    parts = ["long", "read"]
    short = [word for p in parts for word in (f"--stages.restoration.parts.{p}.window", "64")]
    assert dry(base, tmp_path / "short", *options, *short) == 0
    assert "warning: no window above 64 tokens is trained" in capsys.readouterr().err


def test_a_tokenizer_without_words_is_refused(tmp_path, capsys):
    base = tiny.save_tiny_base(tmp_path / "base")
    for path in base.glob("*token*"):
        path.unlink()
    text = small_run.write_text(tmp_path / "text", documents=2, words=30)
    assert dry(base, tmp_path / "out", "--window", "256", "--data", str(text)) == 2
    assert "tokenizer" in capsys.readouterr().err
