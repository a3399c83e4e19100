"""Folders that do not fit end in one line that helps; nothing a user made is touched."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

import small_run
import tiny
from linearard.cli.main import main
from linearard.model import written


@pytest.fixture(scope="module")
def trained(base_folder, tmp_path_factory):
    """A finished run of one stage."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = small_run.one_stage(folder, base_folder, sequences=4, save_steps=2)
    return small_run.train(recipe)


class TestOutputFolder:
    @pytest.fixture
    def path(self, recipe, tmp_path):
        return str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))

    @pytest.fixture
    def run(self, recipe):
        """A folder as an interrupted run leaves it."""
        folder = Path(recipe["output_dir"])
        small_run.write_recipe(recipe, folder / "recipe.yaml")
        written.note(folder, ["recipe.yaml", "final", "evaluation.json", "report.html"])
        return folder

    def test_an_earlier_run(self, path, run, refusal, no_model):
        """A recipe alone, which `restore --dry-run` leaves, is none."""
        (run / "stage1-restoration").mkdir()
        line = refusal("train", path)
        assert "an empty or new output folder" in line
        assert "an earlier run (recipe.yaml, stage1-restoration)" in line
        assert "--resume to go on, --overwrite to replace" in line

    @pytest.mark.parametrize(
        "wrong",
        [
            ("--data.train", "/nowhere/books"),
            ("--evaluation.tasks_dir", "/nowhere/tasks"),
            ("--model.name", "/nowhere/model"),
        ],
    )
    def test_what_is_refused_replaces_nothing(self, wrong, path, run, refusal):
        (run / "stage1-restoration" / "checkpoint-3").mkdir(parents=True)
        (run / "stage1-restoration" / "checkpoint-3" / "complete.json").write_text("{}")
        (run / "final").mkdir()
        for name in ("final/weights", "evaluation.json", "report.html"):
            (run / name).write_text("an earlier run's")
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        refusal("train", path, "--overwrite", *wrong)
        after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
        assert after == before

    def test_a_refused_command_can_be_corrected(self, path, recipe, refusal):
        refusal("train", path, "--data.train", "/nowhere/books")
        assert not (Path(recipe["output_dir"]) / "recipe.yaml").exists()
        line = refusal("train", path, "--data.train", "/nowhere/other")
        assert "/nowhere/other" in line

    @pytest.mark.parametrize("flags", [[], ["--resume"], ["--overwrite"]])
    def test_files_that_are_not_ours(self, flags, path, recipe, refusal, no_model):
        folder = Path(recipe["output_dir"])
        folder.mkdir()
        (folder / "thesis.tex").write_text("years of work")
        line = refusal("train", path, *flags)
        assert "thesis.tex" in line and "files that linearard did not write are left alone" in line
        assert (folder / "thesis.tex").read_text() == "years of work"

    def test_a_file_in_the_place_of_the_folder(self, path, recipe, refusal, no_model):
        Path(recipe["output_dir"]).write_text("a file")
        assert "output_dir to be a folder, got a file at" in refusal("train", path)

    def test_a_folder_that_cannot_be_made(self, path, recipe, tmp_path, refusal, no_model):
        (tmp_path / "file").write_text("")
        line = refusal("train", path, "--output-dir", str(tmp_path / "file" / "run"))
        assert "an output folder that can be written" in line and "Choose another" in line

    @pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
    def test_a_run_that_is_still_going_on(self, flag, path, run, refusal, no_model):
        """For instance in workers whose launcher was killed."""
        (run / "stage1-restoration").mkdir()
        with FileLock(run / ".lock"):
            line = refusal("train", path, flag)
        assert f"nobody else is training, got {run}, which another process is using" in line
        assert (run / "stage1-restoration").exists()

    def test_a_refused_run_lets_its_folder_go(self, path, recipe, refusal, no_model):
        line = refusal("train", path, "--resume", "--stages.cpt.sequences", "9999")
        assert "9999 blocks" in line
        with FileLock(recipe["output_dir"] + "/.lock", timeout=0):
            pass

    def test_a_changed_recipe(self, path, run, refusal, no_model):
        line = refusal("train", path, "--resume", "--stages.cpt.learning_rate", "0.5")
        assert f"the recipe that {run} was started with" in line
        assert "stages.cpt.learning_rate: 0.01 -> 0.5" in line
        assert "Give --overwrite to replace it, or another output folder" in line

    def test_relations_left_out_are_not_those_of_none(self, recipe, tmp_path, refusal, no_model):
        """`relations: {}` is a stage without them; without the field it has the paper's."""
        cpt = recipe["stages"]["cpt"]
        cpt["window"] = 48
        small_run.write_recipe(recipe, Path(recipe["output_dir"]) / "recipe.yaml")
        written.note(Path(recipe["output_dir"]), ["recipe.yaml"])
        del cpt["objective"]["relations"]
        path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")
        line = refusal("train", str(path), "--resume")
        assert "stages.cpt.objective.relations: {} -> None" in line

    def test_what_is_not_the_recipe_may_change(self, path, run, tmp_path, no_model):
        """The evaluation, the cache and the folder's name say nothing about what is trained."""
        moved = run.with_name("moved")
        shutil.move(run, moved)
        with pytest.raises(AssertionError, match="loaded the weights"):
            flags = ["--data.cache_dir", str(tmp_path / "elsewhere"), "--evaluation", "null"]
            main(["train", path, "--resume", "--quiet", "--output-dir", str(moved), *flags])


class TestCheckpoints:
    @pytest.mark.parametrize("command", [["evaluate"], ["export"]])
    def test_a_folder_without_checkpoint(self, command, tmp_path, refusal, no_model):
        line = refusal(*command, str(tmp_path), *_output(command, tmp_path))
        assert "a checkpoint folder with linearard.json" in line and str(tmp_path) in line

    def test_a_run_that_is_not_finished(self, recipe, refusal, no_model):
        run = Path(recipe["output_dir"])
        small_run.write_recipe(recipe, run / "recipe.yaml")
        line = refusal("evaluate", str(run))
        assert f"got the unfinished run {run}" in line
        assert f"`linearard train {run}/recipe.yaml --resume`" in line

    @pytest.mark.parametrize("command", [["evaluate"], ["export"]])
    @pytest.mark.parametrize(
        ("flag", "value", "section"),
        [("--adapter.r", "8", "adapter"), ("--rope.factor", "2", "rope")],
    )
    def test_not_what_it_was_trained_as(
        self, command, flag, value, section, trained, tmp_path, refusal, no_model
    ):
        line = refusal(*command, str(trained), *_output(command, tmp_path), f"{flag}={value}")
        assert f"the {section} that the checkpoint was trained with" in line
        assert flag.removeprefix("--") in line and f"Leave --{section}.* out" in line

    @pytest.mark.parametrize(
        ("section", "field", "words"),
        [
            ("adapter", "r", ["an adapter with 18 tensors that fit this model", "adapter.r"]),
            ("rope", "factor", ["a checkpoint trained for RoPE", "factor=2.0", "factor=4.0"]),
        ],
    )
    def test_a_recipe_that_does_not_fit_its_own_weights(
        self, section, field, words, trained, tmp_path, refusal
    ):
        """Weights and frequencies are compared too, whatever the recipe says."""
        copy = tmp_path / "copy"
        shutil.copytree(trained / "final", copy)
        metadata = json.loads((copy / "linearard.json").read_text())
        metadata["recipe"][section][field] = 2
        (copy / "linearard.json").write_text(json.dumps(metadata))
        line = refusal("evaluate", str(copy))
        for word in words:
            assert word in line

    def test_another_model(self, trained, tmp_path, refusal):
        other = tiny.save_tiny_base(tmp_path / "other", seed=5)
        line = refusal("export", str(trained), str(tmp_path / "out"), "--model.name", str(other))
        assert f"a checkpoint of {other}" in line and "weights or architecture differ" in line
        assert "Name the base model it was trained from" in line

    def test_an_evaluation_that_is_there(self, trained, tmp_path, refusal, no_model):
        (tmp_path / "evaluation.json").write_text("{}")
        line = refusal("evaluate", str(trained), "--output-dir", str(tmp_path))
        assert "a folder without an evaluation" in line and "--overwrite" in line

    def test_changed_text(self, trained, tmp_path, refusal, no_model):
        copy = tmp_path / "run"
        shutil.copytree(trained, copy)
        recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
        book = Path(recipe["data"]["train"]) / "book0.txt"
        before = book.read_text()
        book.write_text(before.replace("ship", "boat"))
        try:
            line = refusal(
                "train", str(copy / "recipe.yaml"), "--resume", "--output-dir", str(copy)
            )
        finally:
            book.write_text(before)
        assert "the training text that" in line and "other text or another tokenizer" in line
        assert "Restore the text, or start again with --overwrite" in line

    @pytest.mark.parametrize(
        ("flags", "word"),
        [(["--format", "onnx"], "a format among merged, adapter"), ([], "an empty or new")],
    )
    def test_exports_that_cannot_be(self, flags, word, trained, tmp_path, refusal, no_model):
        (tmp_path / "mine.txt").write_text("mine")
        assert word in refusal("export", str(trained), str(tmp_path), *flags)


def _output(command: list[str], folder: Path) -> list[str]:
    return [str(folder / "out")] if command == ["export"] else []
