"""What trackers get of a run: TensorBoard's files read back, W&B's own run offline, no network."""

import json
from pathlib import Path

import pytest
import yaml

import small_run
from linearard.cli.main import main
from linearard.errors import RecipeError
from linearard.recipe import recipe_from_dict
from linearard.recipe.trackers import tracker_names
from linearard.train import Trackers

ROW = "eval/held-out_text/perplexity_48_tokens"
BOTH = ["--report_to", '["tensorboard", "wandb"]']


@pytest.fixture
def ended(monkeypatch, tmp_path):
    """Of every W&B run, when it ends: name, configuration, last values, exit code."""
    wandb = pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    finish, found = wandb.finish, []

    def noting(exit_code=None):
        run = wandb.run
        found.append((run.name, dict(run.config), dict(run.summary), exit_code))
        finish(exit_code=exit_code)

    monkeypatch.setattr(wandb, "finish", noting)
    return found


@pytest.fixture
def recipe(tmp_path, base_folder):
    """Two stages of three and four steps, and the smallest evaluation."""
    recipe = small_run.small_recipe(tmp_path, base_folder, stages__restoration__num_train_epochs=1)
    return recipe | {"evaluation": json.loads(small_run.EVALUATION)}


def written(folder):
    """The one set of TensorBoard's files below a folder: values by name and step, and its texts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = Path(folder).rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    values = {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }
    texts = {
        name: events.Tensors(name)[0].tensor_proto.string_val[0].decode()
        for name in events.Tags()["tensors"]
    }
    return values, texts


def test_a_run_and_its_evaluation(recipe, tmp_path, ended):
    """Both stages on one axis of steps, the recipe with its RoPE, and the evaluation of three views."""
    run = small_run.train(recipe, *BOTH)
    values, texts = written(run / "runs")
    losses = [e["loss"] for s in ("stage1-restoration", "stage2-cpt") for e in _steps(run, s)]
    assert values["train/loss"] == pytest.approx(dict(enumerate(losses, 1)), rel=1e-6)
    assert len(losses) == 7 and not list((run / "stage1-restoration").rglob("events*"))
    measured = json.loads((run / "evaluation.json").read_text())["views"]
    for view in ("original", "stretched", "after restoration", "restored"):
        expected = measured[view]["perplexity"]["48"]["ppl"]
        assert values[f"{ROW}/{view.replace(' ', '_')}"] == pytest.approx({7: expected}, rel=1e-6)
    ((name, config, summary, code),) = ended
    assert name == recipe["output_dir"] and code == 0
    for told in (json.loads(texts["args/text_summary"]), config):
        assert told["rope"] == recipe["rope"] and list(told["stages"]) == ["restoration", "cpt"]
        assert told["evaluation"]["perplexity_windows"] == [48]
    assert summary[f"{ROW}/restored"] == pytest.approx(
        measured["restored"]["perplexity"]["48"]["ppl"]
    )
    assert summary["train/loss"] == pytest.approx(losses[-1])
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))

    # What a file of the run says is not asked when its checkpoint is measured again; the command line is.
    out = tmp_path / "again"
    flags = ["--quiet", "--output-dir", str(out), "--evaluation.views", '["original", "restored"]']
    assert main(["evaluate", str(run), *flags]) == 0 and not (out / "runs").exists()
    assert main(["evaluate", str(run), *flags, "--overwrite", "--report_to", "tensorboard"]) == 0
    values, texts = written(out)
    assert values[f"{ROW}/restored"] == pytest.approx(
        {0: measured["restored"]["perplexity"]["48"]["ppl"]}, rel=1e-5
    )
    assert json.loads(texts["args/text_summary"])["rope"] == recipe["rope"]


def test_every_arm_of_a_sweep_is_a_run(recipe, tmp_path, ended):
    del recipe["stages"]["cpt"]
    sweep = {"base": recipe, "output_dir": str(tmp_path / "sweep")}
    sweep["arms"] = {"two": {"rope.factor": 2}, "plain": {"stages": None}}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    assert main(["sweep", str(path), "--quiet", *BOTH]) == 0
    assert [(Path(name).parent.name, code) for name, _, _, code in ended] == [
        ("two", 0),
        ("plain", 0),
    ]
    assert [config["rope"]["factor"] for _, config, _, _ in ended] == [2, 4]
    for (arm, view), (_, _, summary, _) in zip(
        (("two", "restored"), ("plain", "stretched")), ended, strict=True
    ):
        values, _ = written(tmp_path / "sweep" / arm)
        ((step, value),) = values[f"{ROW}/{view}"].items()
        assert step == (3 if arm == "two" else 0) and summary[f"{ROW}/{view}"] == pytest.approx(
            value
        )
        assert ("train/loss" in values) == ("train/loss" in summary) == (arm == "two")


def test_a_run_that_fails_is_said_to(recipe, tmp_path, ended):
    asked = recipe_from_dict(recipe | {"report_to": ["wandb"]}, allowed={"report_to": ["wandb"]})
    with pytest.raises(ZeroDivisionError), Trackers(asked, tmp_path / "run"):
        raise ZeroDivisionError
    assert [code for *_, code in ended] == [1]


def test_a_tracker_that_cannot_begin(recipe, tmp_path, monkeypatch):
    """It is named with what it says before any weights are read, and nothing of an earlier run is lost."""
    pytest.importorskip("wandb")

    def refuse(**options):
        raise RuntimeError("no API key")

    monkeypatch.setattr("wandb.init", refuse)
    asked = recipe_from_dict(recipe | {"report_to": "wandb"}, allowed={"report_to": "wandb"})
    with pytest.raises(RecipeError, match=r"RuntimeError: no API key\. Set it up .`wandb login`"):
        Trackers(asked, tmp_path / "run").__enter__()


@pytest.mark.parametrize("asked", [None, "none", []])
def test_none(asked):
    assert tracker_names(asked) == []


@pytest.mark.parametrize("asked", ["all", "tensorbord", ["wandb", 3], {"wandb": 1}, 7])
def test_names_that_are_none(asked):
    with pytest.raises(RecipeError, match="report_to to be none, or one or several of azure_ml"):
        tracker_names(asked)


def _steps(run, stage):
    return [entry for entry in small_run.history(run, stage) if "loss" in entry]
