"""`linearard restore` on tiny models: one command to a verified export and a verdict, whatever the model."""

import errno
import json

import pytest
import yaml

import small_run
import tiny
from linearard.cli.main import main

ARCHITECTURES = sorted(tiny.ARCHITECTURES)
ROOM = tiny.VOCAB + 6  # for tokens that the tokenizer of an architecture adds
#: Trials and an evaluation as `restore` decides them, of fewer steps and tokens.
SMALLER = {
    "stages.alignment.held_out.rate_steps": "2",
    "stages.restoration.held_out.rate_steps": "2",
    "evaluation.perplexity_tokens": "4096",
    "evaluation.agreement_tokens": "4096",
    "evaluation.texts_tokens": "4096",
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return small_run.write_text(tmp_path_factory.mktemp("text"), documents=8, words=4000)


def command(base, folder, text, *options, tokens="6k", window="256"):
    """On a CPU as on a GPU of 8 GiB: both stages, with text that the model writes."""
    arguments = ["restore", str(base), "--window", window, "--data", str(text), "--tokens", tokens]
    arguments += ["--gpu-memory", "8GiB", "--model.device", "cpu", "--output", str(folder)]
    # In the place of Python's documentation, which takes every tokenizer ten seconds.
    other = small_run.write_noise(folder.parent / f"other-{folder.name}", documents=2)
    fields = SMALLER | {"evaluation.texts": f"{{documentation: {other}}}"}
    smaller = [word for field, value in fields.items() for word in (f"--{field}", value)]
    return [*arguments, "--quiet", *smaller, *options]


def restore(*arguments, **options):
    return main(command(*arguments, **options))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_ends_in_a_proven_export_and_a_verdict(
    architecture, tmp_path, text, capsys
):
    base = tiny.save_tiny_base(tmp_path / "base", architecture, vocab_size=ROOM)
    folder = tmp_path / "run"
    code = restore(base, folder, text)
    verdict = json.loads((folder / "verdict.json").read_text())
    assert code == (0 if verdict["good"] else 3)
    said = capsys.readouterr().err
    assert "RoPE scaling: YaRN x 5" in said
    assert ("NOT BETTER" in said or "WORSE" in said) == (code == 3)
    for label in verdict["worse"]:
        assert label in said.splitlines()[-1]
    export = json.loads((folder / "exported" / "linearard_export.json").read_text())
    assert "top1_agreement" in json.dumps(export)
    assert (folder / "report.html").is_file()


def test_biases_and_lora(tmp_path, text):
    """Qwen2 has biases on q, k, v; LoRA leaves them and is chosen by a flag."""
    base = tiny.save_tiny_base(tmp_path / "base", "qwen2", vocab_size=ROOM)
    parts = [f"--stages.restoration.parts.{part}.window" for part in ("long", "read")]
    short = [word for part in parts for word in (part, "64")]
    run, again = tmp_path / "run", tmp_path / "again"
    assert restore(base, run, text, "--adapter", "lora", *short) in (0, 3)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["adapter"]["kind"] == "lora"
    # Whatever windows memory allowed, every export says the one that was asked for.
    assert main(["export", str(run), str(again), "--quiet"]) == 0
    for folder in (run / "exported", again):
        config = json.loads((folder / "config.json").read_text())
        assert config["max_position_embeddings"] == 256


def test_a_dry_run_leaves_a_recipe_that_trains_to_the_same(tmp_path, text):
    base = tiny.save_tiny_base(tmp_path / "base")
    written, trained = tmp_path / "written", tmp_path / "trained"
    assert restore(base, written, text, "--dry-run") == 0
    assert [path.name for path in written.iterdir() if path.name[0] != "."] == ["recipe.yaml"]
    assert restore(base, trained, text) in (0, 3)
    assert main(["train", str(written / "recipe.yaml"), "--quiet"]) == 0
    assert small_run.final_bytes(written) == small_run.final_bytes(trained)


def test_two_processes_restore_one_model(tmp_path, text):
    """Under torchrun: everything is said, written and exported once."""
    base = tiny.save_tiny_base(tmp_path / "base")
    short = ("--stages.restoration", "null", "--stages.alignment.sequences", "8")
    folder = tmp_path / "run"
    done = small_run.launch(*command(base, folder, text, *short), processes=2)
    verdict = json.loads((folder / "verdict.json").read_text())
    assert (done.returncode == 0) == verdict["good"], done.stderr
    assert done.stderr.count("RoPE scaling: ") == done.stderr.count("exported to ") == 1
    assert (folder / "exported" / "model.safetensors").is_file()
    (state,) = (json.loads(path.read_text()) for path in folder.glob("*/*/trainer_state.json"))
    assert state["global_step"] == 2  # of two windows in either process


def test_faults_at_the_end(tmp_path, text, capsys, monkeypatch):
    """A user's verdict.json is left alone; an export that fails does not take the verdict with it."""
    base = tiny.save_tiny_base(tmp_path / "base")
    folder, short = tmp_path / "run", ("--stages.restoration", "null")
    assert restore(base, folder, text, "--dry-run", *short) == 0
    (folder / "verdict.json").write_text("mine")
    assert restore(base, folder, text, "--overwrite", *short) == 2
    assert "which linearard has not written there" in capsys.readouterr().err
    assert (folder / "verdict.json").read_text() == "mine"
    (folder / "verdict.json").unlink()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("linearard.restore.run.export_run", full)
        assert restore(base, folder, text, "--overwrite", *short) == 2
    *_, verdict, error = capsys.readouterr().err.splitlines()
    assert "than the stretched model in" in verdict and "room on the disk" in error
    once = small_run.final_bytes(folder)
    assert restore(base, folder, text, "--resume", *short) in (0, 3)
    assert capsys.readouterr().err.splitlines()[-1] == verdict
    assert small_run.final_bytes(folder) == once and (folder / "exported").is_dir()


def test_noise_and_a_rate_a_hundred_times_too_high(tmp_path, capsys):
    """Neither ends in a traceback, nor in a model that is worse without a word."""
    noise = small_run.write_noise(tmp_path / "noise")
    base = tiny.save_tiny_base(tmp_path / "base")
    faster = [
        "--stages.restoration.learning_rate",
        "0.5",
        "--stages.alignment.learning_rate",
        "0.5",
    ]
    for number, (source, options) in enumerate([(noise, []), (noise, faster)]):
        folder = tmp_path / f"run{number}"
        code = restore(base, folder, source, *options)
        verdict = json.loads((folder / "verdict.json").read_text())
        assert code == (0 if verdict["good"] else 3)
        result = json.loads((folder / "evaluation.json").read_text())["views"]
        kls = {view: result[view]["agreement"]["kl"] for view in ("stretched", "restored")}
        worse = kls["restored"] > 1.02 * kls["stretched"] + 2e-4
        assert worse == any(label.startswith("KL to original") for label in verdict["worse"])
        capsys.readouterr()
