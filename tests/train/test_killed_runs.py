"""A run that is killed and resumed ends in the same bits as one that nobody disturbed."""

import os
import shutil
from pathlib import Path

import pytest

import small_run
from forked import Forked
from linearard.cli.main import main


def test_killed_ten_times():
    """At random moments, in four kinds of work; `benchmarks/results/cpu/kills.json` has many more."""
    kinds = ["training, LoRA", "training, direct", "own text", "export"]
    script = str(Path(__file__).with_name("kill_trials.py"))
    arguments = [script, "--kills", "10", "--only", *kinds]
    with Forked(arguments, environment=small_run.environment()) as running:
        result = running.wait(800)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("identical") == len(kinds) and "DIFFERENT" not in result.stdout


@pytest.fixture(scope="module")
def finished(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    recipe = small_run.small_recipe(folder, base_folder, stages__cpt__save_total_limit=4)
    return small_run.train(recipe)


class TestLeftovers:
    """What a killed process can leave, put there by hand, so that every case is met each time."""

    @pytest.fixture
    def run(self, finished, tmp_path):
        """A copy of a finished run, to be damaged."""
        shutil.copytree(finished, tmp_path / "run")
        return tmp_path / "run"

    def resume(self, run, *flags):
        flags = flags or ("--resume",)
        arguments = [str(run / "recipe.yaml"), "--output-dir", str(run), "--quiet", *flags]
        if not (run / "recipe.yaml").exists():
            arguments[0] = str(run.parent / "recipe.yaml")
        return main(["train", *arguments])

    def test_nothing_to_do(self, run, finished, capsys):
        """A finished run is loaded, not trained again; time and tokens are still told."""
        before = {path: path.stat().st_mtime_ns for path in run.glob("stage*/**/*")}
        assert self.resume(run) == 0
        assert small_run.final_bytes(run) == small_run.final_bytes(finished)
        assert {path: path.stat().st_mtime_ns for path in run.glob("stage*/**/*")} == before
        printed = capsys.readouterr().err
        assert "stage restoration: 6 steps, 1,152 tokens" in printed and ", 0.0 s" not in printed

    def test_only_the_beginning_of_the_recipe(self, run, finished):
        shutil.move(run / "recipe.yaml", run.parent / "recipe.yaml")
        shutil.rmtree(run)
        run.mkdir()
        (run / ".recipe.yaml.4242").write_text("model: {na")
        assert self.resume(run) == 0
        assert small_run.final_bytes(run) == small_run.final_bytes(finished)
        assert not list(run.glob(".recipe.yaml*"))

    def test_half_a_token_file(self, run, finished, tmp_path, base_folder):
        """The next process to cut the same text removes what a killed one had written."""
        recipe = small_run.small_recipe(tmp_path / "again", base_folder)
        cache = tmp_path / "again" / "cache"
        small_run.train(recipe)
        (whole, *_) = blocks = sorted(cache.glob("*.npy"))
        key = whole.name.partition("-")[0]
        (cache / f".{key}.4242").write_bytes(whole.read_bytes()[:50])
        whole.unlink()
        shutil.rmtree(recipe["output_dir"])
        assert small_run.final_bytes(small_run.train(recipe)) == small_run.final_bytes(finished)
        assert sorted(cache.glob("*.npy")) == blocks and not list(cache.glob(".*"))

    @pytest.mark.parametrize("left", [[], ["adapter_model.safetensors"], ["trainer_state.json"]])
    def test_half_a_checkpoint(self, left, run, finished):
        """The newest checkpoint of stage 2 lost its marker and some files."""
        newest = run / "stage2-cpt" / "checkpoint-4"
        for path in newest.iterdir():
            if path.name not in left:
                path.unlink()
        for name in left:
            (newest / name).write_bytes((newest / name).read_bytes()[:20])
        shutil.rmtree(run / "final")
        assert self.resume(run) == 0
        assert small_run.final_bytes(run) == small_run.final_bytes(finished)

    def test_half_a_final_checkpoint(self, run, finished):
        (run / "final" / "linearard.json").unlink()
        weights = run / "final" / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        assert self.resume(run) == 0
        assert small_run.final_bytes(run) == small_run.final_bytes(finished)

    def test_a_final_checkpoint_is_whole_or_not_one(self, run, finished, monkeypatch, capsys):
        """Killed while it takes the place of an earlier one, it is refused and not half loaded."""
        replace = os.replace

        def killed(source, target):
            if target.parent == run / "final" and target.name == "linearard.json":
                raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("linearard.model.written.os.replace", killed)
            assert self.resume(run) == 130
        assert (run / "final" / "adapter_model.safetensors").exists()
        capsys.readouterr()
        assert main(["export", str(run), str(run.parent / "out"), "--quiet"]) == 2
        assert "the unfinished run" in capsys.readouterr().err
        assert self.resume(run) == 0
        assert small_run.final_bytes(run) == small_run.final_bytes(finished)

    def test_an_overwrite_that_was_killed(self, run, finished, monkeypatch):
        """Removal begins with the markers: what is left is never taken for a checkpoint."""
        removed = []

        def remove(path):
            removed.append(path)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("linearard.model.written.remove", remove)
            assert self.resume(run, "--overwrite") == 130
        assert removed == [run / "final"]
        assert not list(run.glob("final/complete.json"))
        assert (run / "recipe.yaml").exists()
        assert self.resume(run) == 0
        assert small_run.final_bytes(run) == small_run.final_bytes(finished)

    def test_an_overwrite_leaves_nothing_of_the_old_run_and_all_of_the_users(self, run, finished):
        for name in ("evaluation.json", "report.html", "stage3-notes.txt"):
            (run / name).write_text("{}")
        (run / "plots").mkdir()
        os.utime(run / "final" / "adapter_model.safetensors", (0, 0))
        assert self.resume(run, "--overwrite", "--seed", "1") == 0
        assert small_run.final_bytes(run) != small_run.final_bytes(finished)
        names = {path.name for path in run.iterdir()}
        assert {"stage3-notes.txt", "plots", "final", "recipe.yaml"} < names
        assert not names & {"evaluation.json", "report.html"}
        assert "seed: 1" in (run / "recipe.yaml").read_text()

    def test_only_the_newest_checkpoints_are_kept(self, finished):
        kept = {
            stage: sorted(path.name for path in Path(finished / stage).iterdir())
            for stage in ("stage1-restoration", "stage2-cpt")
        }
        assert kept["stage1-restoration"] == ["checkpoint-4", "checkpoint-6"]
        assert kept["stage2-cpt"] == [f"checkpoint-{step}" for step in range(1, 5)]
