"""Recipes, sweeps, tasks and text by a stranger allow nothing that the command line did not."""

import json
from pathlib import Path

import pytest
import yaml
from strangers import payload, refusal, snapshot

import small_run
from linearard.cli.main import main
from linearard.data import DataConfig, token_blocks
from linearard.errors import RecipeError
from linearard.recipe import load_recipe
from linearard.sweep import load_sweep
from small_run import EVALUATION


class TestRecipeAndSweep:
    @pytest.fixture
    def recipe(self, tmp_path, with_code):
        return small_run.one_stage(tmp_path, with_code)

    ASKED = pytest.mark.parametrize(
        ("field", "value"),
        [
            ("model.trust_remote_code", True),
            ("model.attn_implementation", "someone/kernel"),
            ("model.attn_implementation", "kernels-community/flash-attn3@main:f"),
            ("evaluation.lm_eval_dir", "tasks"),
            ("report_to", "wandb"),
            ("report_to", ["tensorboard", "wandb"]),
        ],
    )

    @staticmethod
    def set_field(recipe, field, value):
        *parents, last = field.split(".")
        for key in parents:
            recipe = recipe.setdefault(key, {})
        recipe[last] = value

    @ASKED
    def test_a_recipe_cannot_allow_it(self, field, value, recipe, tmp_path, capsys):
        self.set_field(recipe, field, value)
        path = small_run.write_recipe(recipe, tmp_path / "r.yaml")
        for command in ("train", "plan"):
            line = refusal(capsys, command, path)
            assert f"without {field}, unless the command line" in line
            assert f"Give --{field}" in line
        assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()

    @ASKED
    def test_the_command_line_can(self, field, value, recipe, tmp_path):
        self.set_field(recipe, field, value)
        path = small_run.write_recipe(recipe, tmp_path / "r.yaml")
        load_recipe(path, {field: json.dumps(value)})
        whole = field.split(".")[0]
        load_recipe(path, {whole: json.dumps(recipe[whole])})

    def test_the_command_line_has_to_say_the_same(self, recipe, tmp_path):
        recipe["model"]["trust_remote_code"] = True
        path = small_run.write_recipe(recipe, tmp_path / "r.yaml")
        with pytest.raises(RecipeError, match="unless the command line"):
            load_recipe(path, {"model.revision": "main"})
        assert not load_recipe(path, {"model.trust_remote_code": "false"}).model.trust_remote_code

    @ASKED
    @pytest.mark.parametrize("place", ["base", "set", "arm", "grid"])
    def test_no_part_of_a_sweep_can(self, place, field, value, recipe, tmp_path, ran, capsys):
        sweep = {"base": recipe, "output_dir": str(tmp_path / "out"), "arms": {"a": {}}}
        if place == "base":
            self.set_field(recipe, field, value)
        elif place == "set":
            sweep["set"] = {field: value}
        elif place == "arm":
            sweep["arms"]["a"] = {field: value}
        else:
            sweep["grid"] = {field: [value]}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(sweep, sort_keys=False))
        line = refusal(capsys, "sweep", path)
        assert f"without {field}, unless the command line" in line
        assert not ran.exists() and not (tmp_path / "out").exists()

    @pytest.mark.parametrize("place", ["base", "set", "stage", "part"])
    def test_a_sweep_keeps_no_cache_elsewhere(self, place, base_folder, tmp_path):
        """The user's own cache is used instead, and a line says so; the command line decides."""
        (tmp_path / "work").mkdir()
        recipe = small_run.one_stage(tmp_path / "work", base_folder)
        outside = str(tmp_path / "outside")
        elsewhere = {"cache_dir": outside}
        sweep = {"base": recipe, "output_dir": str(tmp_path / "work/out"), "arms": {"a": {}}}
        if place == "base":
            recipe["data"] |= elsewhere
        elif place == "set":
            sweep["set"] = {"data": elsewhere}
        elif place == "stage":
            recipe["stages"]["only"]["data"] = elsewhere
        else:
            part = {"window": 48, "sequences": 4, "data": elsewhere}
            recipe["stages"]["only"] = {"parts": {"p": part}}
        path = tmp_path / "work" / "sweep.yaml"
        path.write_text(yaml.safe_dump(sweep, sort_keys=False))
        found = load_sweep(path)
        (note,) = found.notes
        assert outside in note and "--data.cache_dir" in note
        for job in found.jobs:
            assert outside not in str([job.recipe.data, job.recipe.stages, job.recipe.source])
        allowed = load_sweep(path, {"data.cache_dir": outside})
        assert not allowed.notes and outside in str(allowed.jobs[0].recipe)

    @pytest.mark.parametrize("arm", ["../x", "/x", "a/b", "..", "~", ".hidden", "x\n"])
    def test_arms_stay_in_the_folder(self, arm, recipe, tmp_path, capsys):
        sweep = {"base": recipe, "output_dir": str(tmp_path / "out"), "arms": {arm: {}}}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(sweep, sort_keys=False))
        assert "names of arms" in refusal(capsys, "sweep", path)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("stage", ["../x", "a/b", ".", "a b", "é", "a\n"])
    def test_stages_stay_in_the_folder(self, stage, recipe, tmp_path, capsys):
        recipe["stages"] = {stage: {"window": 48}}
        path = small_run.write_recipe(recipe, tmp_path / "r.yaml")
        assert "stage names of letters" in refusal(capsys, "train", path)


def test_names_of_tasks_are_text_in_the_report(trained, tmp_path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    record = json.dumps({"context": "the ship", "choices": ["<b>x</b>", "sea"], "answer": 1})
    (tasks / "<img src=x onerror=alert(1)>$x_$.jsonl").write_text(f"{record}\n{record}\n")
    config = json.loads(EVALUATION) | {"tasks_dir": str(tasks)}
    out = str(tmp_path / "out")
    flags = ["--evaluation", json.dumps(config), "--output-dir", out, "--quiet"]
    cache = ["--data.cache_dir", str(tmp_path / "cache")]
    assert main(["evaluate", str(trained), *flags, *cache]) == 0
    page = Path(out, "report.html").read_text()
    assert "<img" not in page and "&lt;img" in page and "script" not in page


class TestText:
    @pytest.fixture
    def blocks(self, tmp_path, byte_tokenizer):
        """Cut the text of a folder; what is left on disk beside the cache."""

        def cut():
            data = DataConfig(
                train=str(tmp_path / "text"),
                validation_fraction=0.0,
                cache_dir=str(tmp_path / "cache"),
            )
            before = {p for p in snapshot(tmp_path) if not p.is_relative_to(tmp_path / "cache")}
            found = token_blocks(data, byte_tokenizer, 8, split="train", count=None)
            after = {p for p in snapshot(tmp_path) if not p.is_relative_to(tmp_path / "cache")}
            assert after == before
            return found

        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "a.txt").write_text("the ship came over the sea")
        return cut

    def test_programs_are_text(self, blocks, tmp_path, ran):
        (tmp_path / "text" / "own.py").write_text(f"open({str(ran)!r}, 'w')  # " + "x" * 40)
        (tmp_path / "text" / "__init__.py").write_text(f"open({str(ran)!r}, 'w')  # " + "x" * 40)
        (tmp_path / "text" / "conftest.pkl").write_bytes(payload(ran))
        assert len(blocks()) > 2 and not ran.exists()

    def test_types_of_columns_are_not_unpickled(self, blocks, tmp_path, ran):
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        marks = {
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": payload(ran),
        }
        field = pa.field("text", pa.string(), metadata=marks)
        table = pa.table([pa.array(["the wind went over the sea"])], schema=pa.schema([field]))
        parquet.write_table(table, tmp_path / "text" / "b.parquet")
        assert len(blocks()) > 2 and not ran.exists()

    def test_names_of_files_are_names(self, blocks, tmp_path, ran):
        for name in (f"$(touch {ran.name}).txt", "-rf.txt", "..txt", "a\nb.txt"):
            (tmp_path / "text" / name).write_text("the wind went over the sea")
        assert len(blocks()) > 2 and not ran.exists()


def test_a_hub_data_set_has_an_owner(tmp_path):
    """Names such as csv and pandas are readers of whatever files lie in the working folder."""
    from linearard.data.sources import open_source
    from linearard.errors import DataError

    for name in ("pandas", "csv", "json", "webdataset"):
        with pytest.raises(DataError, match="owner/name"):
            open_source(name, DataConfig(train=name), "train")
