"""--overwrite removes what linearard has listed as its own; a user's files stay where they are."""

import json
import shutil
from pathlib import Path

import pytest

import small_run
from linearard.cli.main import main


def files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, by name."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


MINE = {
    "recipe.yaml": "cake: flour\n",
    "final/photo.jpg": "a photo",
    "final/linearard.json": "{}",
    "stage1-notes/thesis.tex": "years of work",
    "stage1-only/checkpoint-4/complete.json": "{}",
    "report.html": "a report of mine",
    "evaluation.json": "{}",
}


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_a_folder_of_anything_else(flag, recipe, tmp_path, refusal, no_model):
    """Whatever it holds, and under whatever names."""
    folder = Path(recipe["output_dir"])
    for name, content in MINE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    before = files(folder)
    line = refusal("train", str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml")), flag)
    assert "which linearard has not written there" in line
    assert files(folder) == before


def test_a_recipe_kept_in_its_own_output_folder(recipe, refusal, no_model):
    path = small_run.write_recipe(recipe, Path(recipe["output_dir"]) / "recipe.yaml")
    before = files(path.parent)
    for flags in ([], ["--overwrite"]):
        assert "recipe.yaml, which linearard has not" in refusal("train", str(path), *flags)
    assert files(path.parent) == before


def test_a_users_files_within_a_run(trained, tmp_path):
    """The old run goes, with what `evaluate` wrote into its checkpoints; all else stays."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert main(["evaluate", str(run), "--quiet", "--evaluation", small_run.EVALUATION]) == 0
    assert (run / "final" / "evaluation" / "evaluation.json").exists()
    mine = {
        "notes.txt": "mine",
        "final/photo.jpg": "mine",
        "final/evaluation/remarks.txt": "mine",
        "stage1-only/curve.csv": "mine",
        "stage1-only/checkpoint-2/notes.txt": "mine",
        "stage1-only/checkpoint-best/linearard.json": "mine",
        "stage2-notes/thesis.tex": "mine",
    }
    for name, content in mine.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content)
    flags = ["--output-dir", str(run), "--overwrite", "--seed", "1"]
    assert main(["train", str(run / "recipe.yaml"), "--quiet", *flags]) == 0
    left = files(run)
    assert {name: left[name].decode() for name in mine} == mine
    assert not {"final/evaluation/evaluation.json", "final/evaluation/report.html"} & left.keys()
    ours = {name for name in left if name not in mine and "checkpoint-" not in name}
    plain = {n for n in files(trained) if "checkpoint-" not in n}
    assert ours == plain
    assert small_run.final_bytes(run) != small_run.final_bytes(trained)


@pytest.mark.parametrize("name", ["evaluation.json", "report.html"])
def test_an_evaluation_over_a_users_file(name, trained, tmp_path, refusal, no_model):
    (tmp_path / name).write_text("{}")
    line = refusal("evaluate", str(trained), "--output-dir", str(tmp_path), "--overwrite")
    assert f"{name}, which linearard evaluate has not written" in line
    assert (tmp_path / name).read_text() == "{}"


def test_a_report_without_its_evaluation(trained, tmp_path, refusal, no_model):
    (tmp_path / "report.html").write_text("mine")
    line = refusal("evaluate", str(trained), "--output-dir", str(tmp_path))
    assert "a folder without an evaluation, got" in line and "report.html, which exists" in line


@pytest.mark.parametrize("name", ["sweep.yaml", "sweep.html", ".views/x.json"])
@pytest.mark.parametrize("flags", [["--overwrite"], ["--resume"], ["--table"]])
def test_a_sweep_over_a_users_files(flags, name, recipe, tmp_path, refusal, no_model):
    """A sweep's own file, say, in the folder that it names as output."""
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    recipe["evaluation"] = json.loads(small_run.EVALUATION)
    values = {"base": recipe, "output_dir": str(out), "arms": {"one": {}}}
    path = small_run.write_recipe(values, tmp_path / "arms.yaml")
    line = refusal("sweep", str(path), *flags)
    assert "which linearard sweep has not written there" in line
    assert files(out) == {name: b"mine"}
