"""Damage to any file of a checkpoint: the run goes on from the one before, says so, and ends the same."""

import os
import shutil
import time

import pytest

import small_run
from linearard.cli.main import main
from linearard.train import checkpoints

FILES = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "complete.json",
    "linearard.json",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
    "training_args.bin",
]


def _flip(path):
    content = bytearray(path.read_bytes())
    content[int(len(content) * 0.7)] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "flipped bit": _flip,
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
}


@pytest.fixture(scope="module")
def finished(base_folder, tmp_path_factory):
    """A finished run of two stages whose checkpoints are all kept."""
    folder = tmp_path_factory.mktemp("finished")
    return small_run.train(
        small_run.small_recipe(folder, base_folder, stages__cpt__save_total_limit=4)
    )


@pytest.fixture
def run(finished, tmp_path):
    """A copy as a run that was killed after checkpoint 2 of 4 of its second stage left it."""
    shutil.copytree(finished, tmp_path / "run")
    for name in ("final", "stage2-cpt/checkpoint-3", "stage2-cpt/checkpoint-4"):
        shutil.rmtree(tmp_path / "run" / name)
    return tmp_path / "run"


def resume(run):
    return main(
        ["train", str(run / "recipe.yaml"), "--output-dir", str(run), "--quiet", "--resume"]
    )


def test_these_are_all_files(finished):
    folder = finished / "stage2-cpt" / "checkpoint-2"
    assert sorted(path.name for path in folder.iterdir()) == [
        name for name in FILES if (folder / name).exists()
    ]
    assert {"optimizer.pt", "complete.json"} < {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_the_one_before_is_chosen(name, damage, run):
    stage = run / "stage2-cpt"
    path = stage / "checkpoint-2" / name
    if not path.exists():
        pytest.skip("not written by this version of transformers")
    DAMAGES[damage](path)
    notes = checkpoints.withdraw_damaged(stage)
    if (name, damage) == ("complete.json", "missing"):
        assert notes == []  # it was never called complete
    else:
        (note,) = notes
        assert f"{path.parent} is damaged ({name}: " in note
        assert note.endswith("; going on from checkpoint-1")
    assert checkpoints.latest_complete(stage) == stage / "checkpoint-1"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.pt", "flipped bit"),
        ("rng_state.pth", "missing"),
        ("trainer_state.json", "empty"),
        ("complete.json", "cut"),
    ],
)
def test_it_ends_in_the_same_bits(name, damage, run, finished, capsys):
    DAMAGES[damage](run / "stage2-cpt" / "checkpoint-2" / name)
    assert resume(run) == 0
    assert f"checkpoint-2 is damaged ({name}: " in capsys.readouterr().err
    assert small_run.final_bytes(run) == small_run.final_bytes(finished)


def test_both_checkpoints_of_a_stage(run, finished, capsys):
    """The stage starts from its beginning; so does one whose end is damaged after the next began."""
    for name in (
        "stage2-cpt/checkpoint-1",
        "stage2-cpt/checkpoint-2",
        "stage1-restoration/checkpoint-6",
    ):
        _flip(run / name / "optimizer.pt")
    assert resume(run) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert (
        len(lines) == 3 and "checkpoint-6" in lines[0] and "going on from checkpoint-4" in lines[0]
    )
    assert all(line.endswith("the stage starts from its beginning") for line in lines[1:])
    assert small_run.final_bytes(run) == small_run.final_bytes(finished)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "linearard.json"])
def test_a_damaged_model_is_not_measured(name, finished, tmp_path, capsys):
    shutil.copytree(finished / "final", tmp_path / "final")
    path = tmp_path / "final" / name
    content = path.read_bytes()
    # A bit of a weight; a bit of LoRA's alpha, which would give another model without a word.
    changed = content.replace(b'"alpha": 8', b'"alpha": 9') if name.endswith("json") else content
    path.write_bytes(changed if changed != content else content[:-1] + bytes([content[-1] ^ 4]))
    assert main(["export", str(tmp_path / "final"), str(tmp_path / "out"), "--quiet"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"a damaged or changed one ({name}: not the bytes that were written)" in line
    assert not (tmp_path / "out").exists()


def test_a_folder_in_the_way_of_a_checkpoint_keeps_what_is_in_it(run, finished):
    """A copy by hand, say: its files are nobody's list."""
    (run / "stage2-cpt" / "checkpoint-3").mkdir()
    (run / "stage2-cpt" / "checkpoint-3" / "notes.txt").write_text("mine")
    assert resume(run) == 0
    assert (run / "stage2-cpt" / "checkpoint-3" / "notes.txt").read_text() == "mine"
    assert small_run.final_bytes(run) == small_run.final_bytes(finished)


def test_hashing_costs_little(tmp_path):
    """A checkpoint of the 7B recipes is some 10 GB; half a gigabyte a second would be 20 s."""
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "optimizer.pt").write_bytes(os.urandom(1 << 26))
    start = time.process_time()
    checkpoints.written.complete(folder)
    assert time.process_time() - start < 64 / 100
