"""What a sweep file means, and what is refused before anything is loaded."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

import small_run
from linearard.cli.main import main
from linearard.errors import RecipeError
from linearard.model import written
from linearard.sweep import load_sweep
from linearard.sweep.overrides import changed_recipe, flatten

EVALUATION = {
    "perplexity_windows": [32],
    "perplexity_tokens": 128,
    "agreement_window": 32,
    "agreement_tokens": 128,
    "passkey_lengths": [],
}
YARN = {"rope_type": "yarn", "factor": 4, "beta_fast": 16}


@pytest.fixture
def base(tmp_path, base_folder):
    """A recipe of two stages as plain data."""
    return small_run.small_recipe(tmp_path, base_folder, evaluation=EVALUATION)


@pytest.fixture
def sweep_file(tmp_path, base):
    """Write a sweep over that recipe; the file's path."""

    def write(**fields):
        values = {"base": base, "output_dir": str(tmp_path / "out"), "arms": {"one": {}}} | fields
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


@pytest.fixture
def refusal(capsys):
    """Run a sweep that must be refused; the one line it ends with."""

    def run(path, *flags):
        capsys.readouterr()
        assert main(["sweep", str(path), "--quiet", *flags]) == 2
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        assert line.startswith("linearard: error: expected ") and ", got " in line
        assert captured.out == ""
        return line

    return run


@pytest.fixture
def no_weights(monkeypatch):
    """Loading weights would fail the test."""

    def load(config, *arguments):
        raise AssertionError(f"loaded the weights of {config.name}")

    monkeypatch.setattr("linearard.sweep.bench.load_model", load)


def sources(path, overrides=None):
    return {job.arm: job.recipe.source for job in load_sweep(path, overrides).jobs}


class TestChanges:
    def test_nested_and_dotted_names_mean_the_same(self):
        nested = {"stages": {"cpt": {"window": 3, "objective": {"lm_weight": 2}}}, "rope": YARN}
        dotted = {"stages.cpt.window": 3, "stages.cpt.objective.lm_weight": 2, "rope": YARN}
        mixed = {"stages.cpt": {"window": 3, "objective.lm_weight": 2}, "rope": YARN}
        assert flatten(nested, "x") == flatten(dotted, "x") == flatten(mixed, "x") == dotted

    def test_nesting_ends_where_a_value_begins(self):
        changes = {"stages": {"a": {"parts": {"p": {"objective": {"relations": {"q": 1}}}}}}}
        assert flatten(changes, "x") == {"stages.a.parts.p.objective.relations": {"q": 1}}
        assert flatten({"evaluation": {"texts": {"code": "src"}}}, "x") == {
            "evaluation.texts": {"code": "src"}
        }

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            (
                {"rope": YARN, "rope.factor": 8},
                "each field once in x, got 'rope' and 'rope.factor'",
            ),
            ({"rope.factor": 8, "rope": YARN}, "got 'rope.factor' and 'rope'"),
            (
                {"stages": {"cpt": {"window": 3}}, "stages.cpt.window": 3},
                "'stages.cpt.window' twice",
            ),
            ({"stages": {"cpt": None}, "stages.cpt.window": 3}, "got 'stages.cpt' and"),
            ({"stages": {}}, "fields of stages in x, or null, got an empty mapping"),
            ({"seed": 3}, "x without 'seed'"),
            ({"output_dir": "runs"}, "x without 'output_dir'"),
        ],
    )
    def test_what_could_be_read_in_two_ways_is_refused(self, changes, words):
        with pytest.raises(RecipeError) as error:
            flatten(changes, "x")
        assert words in str(error.value)

    def test_later_levels_win(self, base):
        levels = [{"rope.factor": 2, "rope.beta_slow": 2}, {"rope": YARN}, {"rope.factor": 8}]
        assert changed_recipe(base, levels, 0).rope == YARN | {"factor": 8}
        assert changed_recipe(base, [levels[2], levels[1]], 0).rope == YARN
        assert base["rope"]["factor"] == 4

    @pytest.mark.parametrize("value", ["/books/\U0001f4da é", 'a "b": #\n\\', "no", "1e-3", ""])
    def test_texts_arrive_as_they_are(self, value, base):
        changes = flatten({"stages.cpt.lr_scheduler_kwargs": {"x": value}}, "arm 'a'")
        recipe = changed_recipe(base, [changes], seed=0)
        assert recipe.stages["cpt"].fields["lr_scheduler_kwargs"] == {"x": value}

    def test_stages_and_parts_can_be_taken_away(self, base):
        before = copy.deepcopy(base)
        set_and_removed = [{"stages.cpt.window": 32}, {"stages.cpt": None}]
        recipe = changed_recipe(base, set_and_removed, 0)
        assert list(recipe.stages) == list(recipe.source["stages"]) == ["restoration"]
        untrained = changed_recipe(base, [{"stages.cpt.window": 32}, {"stages": None}], 0)
        assert untrained.stages == {} and untrained.source["stages"] is None
        part = {"window": 32, "objective": {"relations": {}, "lm_weight": 1}}
        base["stages"]["cpt"] = {"parts": {"a": part, "b": part}}
        left = changed_recipe(base, [{"stages.cpt.parts.b": None}], 0).stages["cpt"].parts
        assert list(left) == ["a"]
        base["stages"]["cpt"] = before["stages"]["cpt"]
        assert base == before

    @pytest.mark.parametrize(
        ("levels", "words"),
        [
            ([{"stages.ctp": None}], "a stage of the base that is still there (restoration, cpt)"),
            ([{"stages.ctp.window": 3}], "got stages.ctp.window"),
            ([{"stages.cpt": None}, {"stages.cpt.window": 3}], "still there (restoration), got"),
            ([{"stages": None}, {"stages.cpt.window": 3}], "still there (none), got"),
            ([{"stages.cpt.parts.p": None}], "a part of the base that is still there (none)"),
        ],
    )
    def test_unknown_stages(self, levels, words, base):
        with pytest.raises(RecipeError) as error:
            changed_recipe(base, levels, 0)
        assert words in str(error.value)


class TestFile:
    def test_levels_seeds_and_folders(self, sweep_file, tmp_path):
        path = sweep_file(
            set={"stages.cpt.sequences": 4, "rope.factor": 2},
            seeds=[3, 5],
            arms={"plain": None, "own": {"rope.factor": 8}, "untrained": {"stages": None}},
        )
        jobs = load_sweep(path, {"rope.factor": "3", "adapter.r": "2"}).jobs
        assert [str(job) for job in jobs] == [
            "plain, seed 3",
            "plain, seed 5",
            "own, seed 3",
            "own, seed 5",
            "untrained, seed 3",
        ]
        assert [job.recipe.rope["factor"] for job in jobs] == [3, 3, 8, 8, 3]
        assert all(job.recipe.adapter.r == 2 for job in jobs)
        assert jobs[1].folder == tmp_path / "out" / "plain" / "seed-5"
        assert [job.view for job in jobs] == ["restored"] * 4 + ["stretched"]
        stages = jobs[0].recipe.source["stages"]
        assert stages["cpt"]["sequences"] == 4 and stages["cpt"]["save_strategy"] == "no"

    def test_checkpoints_are_kept_as_the_recipe_says(self, sweep_file):
        source = sources(sweep_file(keep_checkpoints=True))["one"]
        assert "save_strategy" not in source["stages"]["cpt"]

    def test_a_grid(self, sweep_file):
        path = sweep_file(
            arms={},
            grid={
                "stages.restoration.learning_rate": [1e-3, 2e-5],
                "rope": [YARN, {"rope_type": "linear", "factor": 2}],
                "stages.cpt": [None],
            },
        )
        found = sources(path)
        assert list(found) == [
            "learning_rate=0.001,rope=rope_type-yarn_factor-4_beta_fast-16",
            "learning_rate=0.001,rope=rope_type-linear_factor-2",
            "learning_rate=2e-05,rope=rope_type-yarn_factor-4_beta_fast-16",
            "learning_rate=2e-05,rope=rope_type-linear_factor-2",
        ]
        last = list(found.values())[-1]
        assert last["rope"] == {"rope_type": "linear", "factor": 2}
        assert last["stages"]["restoration"]["learning_rate"] == 2e-5
        assert list(last["stages"]) == ["restoration"]

    def test_names_of_a_grid_tell_its_fields_apart(self, sweep_file):
        rates = {f"stages.{name}.learning_rate": [1, 2] for name in ("restoration", "cpt")}
        names = list(sources(sweep_file(arms={}, grid=rates)))
        assert names[0] == "stages.restoration.learning_rate=1,stages.cpt.learning_rate=1"

    def test_an_arm_with_another_base(self, sweep_file, base, tmp_path):
        other = copy.deepcopy(base) | {"rope": YARN}
        small_run.write_recipe(other, tmp_path / "other.yaml")
        arms = {"one": {}, "two": {"base": str(tmp_path / "other.yaml"), "adapter.r": 2}}
        found = sources(sweep_file(arms=arms))
        assert found["two"]["rope"] == YARN and found["two"]["adapter"]["r"] == 2
        assert found["one"]["rope"] == base["rope"]

    def test_the_example_of_the_documentation(self, tmp_path, base, monkeypatch):
        page = (Path(__file__).parents[2] / "docs" / "how-to" / "sweeps.md").read_text()
        (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
        (tmp_path / "sweep.yaml").write_text(example)
        base["stages"].pop("cpt")
        small_run.write_recipe(base, tmp_path / "my-mixed-recipe.yaml")
        monkeypatch.chdir(tmp_path)
        jobs = load_sweep("sweep.yaml").jobs
        assert {job.arm for job in jobs if not job.trains} == {"yarn-untrained"}
        assert "learning_rate=0.001,r=64" in {job.arm for job in jobs}
        assert all("cpt" not in job.recipe.stages for job in jobs)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"seed": [1]}, ["a field of sweep (base, ", "Did you mean sweep.seeds?"]),
            (
                {"seeds": []},
                ["sweep.seeds to be a list of at least 1 different values, each a whole number"],
            ),
            ({"seeds": [1, 1]}, ["got [1, 1]"]),
            ({"seeds": [1.5]}, ["sweep.seeds to be a list (each a whole number)"]),
            ({"arms": {}}, ["arms or a grid"]),
            ({"base": ""}, ["a base recipe for arm 'one'"]),
            ({"base": "no-such-recipe"}, ["a recipe file in YAML in arm 'one'", "no-such-recipe"]),
            ({"arms": {"../x": {}}}, ["names of arms", "'../x'", "Rename the arm"]),
            ({"arms": {"original": {}}}, ["none of sweep.yaml", "got 'original'"]),
            ({"arms": {"a": {"rope.factr": 0}}}, ["in arm 'a'"]),
            ({"arms": {"a": {"modle.name": "x"}}}, ["Did you mean model?", "in arm 'a'"]),
            (
                {"arms": {"a": {"stages.cpt.lerning_rate": 1}}},
                ["in arm 'a'", "Did you mean stages.cpt.learning_rate?"],
            ),
            ({"arms": {"a": {"stages.ctp": None}}}, ["in arm 'a', got stages.ctp"]),
            ({"grid": {"rope.factor": 3}}, ["grid.rope.factor to be a list of values, got 3"]),
            ({"grid": {"rope.factor": [2, 2]}}, ["a name of its own for each arm", "'factor=2'"]),
            ({"arms": {"a": {"stages.cpt.window": 9999}}}, ["in arm 'a'", "window"]),
            ({"arms": {"a": {"data.train": "nowhere/"}}}, ["in arm 'a'", "nowhere/"]),
            ({"arms": {"a": {"stages.cpt.sequences": 9999}}}, ["9999 blocks", "in arm 'a'"]),
            ({"arms": {"a": {"rope": {"rope_type": "yarnn"}}}}, ["in arm 'a'", "yarnn"]),
            (
                {"arms": {"a": {"stages": None, "rope": {"rope_type": "yarnn"}}}},
                ["in arm 'a'", "yarnn"],
            ),
            (
                {"arms": {"a": {"stages": None, "model.device": "cuda:99"}}},
                ["a CUDA device 'cuda:99' in arm 'a'"],
            ),
            ({"arms": {"a": {"evaluation": None}}}, ["a section 'evaluation'", "in arm 'a'"]),
            ({"set": {"evaluation.views": ["restord"]}}, ["evaluation.views among original"]),
            ({"set": {"evaluation.tasks_dir": "nowhere"}}, ["nowhere", "in arm 'one'"]),
            ({"set": {"evaluation.agreement_window": 99999}}, ["99998 tokens", "in arm 'one'"]),
        ],
        ids=str,
    )
    def test_refusals(self, fields, words, sweep_file, tmp_path, refusal, no_weights):
        """All of them before any weights, and without a trace in the output folder."""
        line = refusal(sweep_file(**fields))
        for word in words:
            assert word in line
        assert not (tmp_path / "out").exists()

    def test_a_good_arm_does_not_start_before_a_bad_one(self, sweep_file, refusal, no_weights):
        arms = {"good": {}, "bad": {"stages.cpt.sequences": 9999}}
        assert "in arm 'bad'" in refusal(sweep_file(arms=arms))

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--seed", "3"], ["the command line without 'seed'", "in seeds"]),
            (["--workers", "0"], ["at least one worker"]),
            (["--workers", "2", "--model.device", "cpu:0"], ["device to be auto, cuda or cpu"]),
        ],
        ids=str,
    )
    def test_command_lines_that_cannot_be(self, flags, words, sweep_file, refusal, no_weights):
        line = refusal(sweep_file(), *flags)
        for word in words:
            assert word in line

    def test_a_file_that_is_not_there(self, tmp_path, refusal):
        assert "a sweep file in YAML, got" in refusal(tmp_path / "nowhere.yaml")

    def test_a_launcher(self, sweep_file, refusal, monkeypatch, no_weights):
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert "Start the sweep without it; --workers N" in refusal(sweep_file())


class TestFolder:
    def test_files_that_are_not_ours(self, sweep_file, tmp_path, refusal, no_weights):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        for flags in ([], ["--resume"], ["--overwrite"]):
            line = refusal(sweep_file(), *flags)
            assert "thesis.tex, which linearard sweep has not written there" in line
            assert "are left alone" in line
        assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"

    def test_an_earlier_sweep(self, sweep_file, tmp_path, refusal, no_weights):
        small_run.write_recipe({}, tmp_path / "out" / "sweep.yaml")
        written.note(tmp_path / "out", ["sweep.yaml"])
        line = refusal(sweep_file())
        assert "an earlier sweep (sweep.yaml)" in line and "--resume to go on" in line

    def test_a_file_in_its_place(self, sweep_file, tmp_path, refusal, no_weights):
        (tmp_path / "out").write_text("a file")
        assert "output_dir to be a folder, got a file at" in refusal(sweep_file())

    def test_a_sweep_that_is_still_going_on(self, sweep_file, tmp_path, refusal, no_weights):
        small_run.write_recipe({}, tmp_path / "out" / "sweep.yaml")
        written.note(tmp_path / "out", ["sweep.yaml"])
        with FileLock(tmp_path / "out" / ".lock"):
            assert "no other sweep runs" in refusal(sweep_file(), "--resume")
