"""`linearard plan` through the real command line: no weights, plain words, figures that hold together."""

from __future__ import annotations

import json

import pytest
import yaml

import tiny
from linearard.cli.main import main
from linearard.planning import Rates, shipped_rates, store, stored_rates
from linearard.planning.byte_sizes import parse_bytes

TERMS = {"relations": {"q": 1, "k": 1, "v": 1}}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def recipe(tmp_path, cache):
    """A recipe whose model is a configuration alone."""
    config = tiny.tiny_config(
        num_hidden_layers=4,
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    config.save_pretrained(tmp_path / "model")
    stages = {
        "restoration": {
            "window": 2048,
            "sequences": 30,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "objective": TERMS,
        },
        "cpt": {
            "parts": {
                "short": {"window": 1024, "sequences": 9, "batch_size": 2, "objective": TERMS},
                "long": {
                    "window": 8192,
                    "sequences": 4,
                    "objective": {"relations": {}, "lm_weight": 1},
                },
            }
        },
    }
    source = {
        "model": {"name": str(tmp_path / "model")},
        "rope": {"rope_type": "linear", "factor": 4},
        "adapter": {"r": 64, "alpha": 128, "dropout": 0},
        "data": {"train": "nothing/is/read"},
        "stages": stages,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(source, sort_keys=False))
    return path


@pytest.fixture
def planned(recipe, capsys):
    def run(*arguments):
        assert main(["plan", str(recipe), "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_counts_of_a_run(planned):
    plan = planned("--gpu-memory", "24GiB")
    first, second = plan["stages"]
    assert first["steps"] == 4  # 30 windows: 8 batches of 4, the last short, two a step
    assert first["tokens"] == 30 * 2048
    assert second["steps"] == 4 + 4  # the ninth short window fills no batch
    assert second["tokens"] == 8 * 1024 + 4 * 8192
    assert plan["tokens"] == first["tokens"] + second["tokens"]
    rank, hidden, kv = 64, 256, 4 * 32
    trained = 4 * rank * ((hidden + hidden) + 2 * (hidden + kv))
    assert plan["trained_parameters"] == trained
    assert first["checkpoint"] == 12 * trained  # weights and two moments
    assert plan["fits"] is True and plan["excess_bytes"] == 0 and plan["advice"] is None
    assert plan["seconds"] == pytest.approx(first["seconds"] + second["seconds"])
    assert 0 < first["step_seconds"] * first["steps"] == pytest.approx(first["seconds"])
    # One copy of the weights that the first stage left.
    (part, *_) = second["parts"]
    assert part["memory"]["parts"]["earlier stages"] == 4 * trained


def test_text_that_the_model_writes_is_counted_as_any_other(planned):
    """Nothing is written for it: this model has no weights."""
    plain = planned()
    own = planned("--stages.cpt.parts.short.data", "{train: self}")
    assert [stage["tokens"] for stage in own["stages"]] == [
        stage["tokens"] for stage in plain["stages"]
    ]


def test_parts_add_up_to_the_peak(planned):
    plan = planned()
    for stage in plan["stages"]:
        for part in stage["parts"]:
            assert sum(part["memory"]["parts"].values()) <= plan["peak_bytes"]
    peaks = [
        sum(part["memory"]["parts"].values()) for stage in plan["stages"] for part in stage["parts"]
    ]
    assert max(peaks) == pytest.approx(plan["peak_bytes"])


def test_what_does_not_fit_is_made_to_fit(planned, recipe, capsys):
    plan = planned()
    limit = int(0.5 * 2**30 + 0.8 * plan["peak_bytes"])
    found = planned("--gpu-memory", str(limit))
    assert found["fits"] is False
    assert found["excess_bytes"] == pytest.approx(found["needed_bytes"] - limit)
    together = found["advice"]["together"]
    options = [word for name, x in together["overrides"].items() for word in (f"--{name}", x)]
    again = planned("--gpu-memory", str(limit), *options)
    assert again["fits"] is True and again["needed_bytes"] == together["needed"]
    # None of the changes could be left out.
    for name in together["overrides"]:
        fewer = {k: v for k, v in together["overrides"].items() if k != name}
        words = [word for key, x in fewer.items() for word in (f"--{key}", x)]
        if name.endswith(("alpha", "sequences", "accumulation_steps")):
            continue  # goes with another field
        assert planned("--gpu-memory", str(limit), *words)["fits"] is False
    assert main(["plan", str(recipe), "--gpu-memory", str(limit)]) == 0
    text = capsys.readouterr().out
    assert "does not fit" in text and "fits with: " in text and " ".join(options) in text


def test_no_change_suffices(planned):
    found = planned("--gpu-memory", "1MiB")
    assert found["fits"] is False and found["advice"]["together"] is None


def test_what_is_recorded_depends_on_the_precision(planned):
    def recorded(*options):
        return {part["recorded"] for s in planned(*options)["stages"] for part in s["parts"]}

    assert recorded("--model.dtype", "bfloat16") == {True}
    assert recorded("--model.dtype", "float16") == {False}


def test_states_in_8_bits_are_for_stages_without_muon(planned):
    found = planned("--gpu-memory", "1MiB", "--stages.restoration.muon", "true")
    changes = [change["overrides"] for change in found["advice"]["single"]]
    (optim,) = (c for c in changes if any(name.endswith(".optim") for name in c))
    assert list(optim) == ["stages.cpt.optim"]


def test_each_way_to_save_saves(planned):
    base = planned()["stages"][0]["parts"][0]["memory"]["parts"]

    def peak(*options):
        return sum(planned(*options)["stages"][0]["parts"][0]["memory"]["parts"].values())

    stage = "--stages.restoration."
    whole = sum(base.values())
    assert peak(f"{stage}gradient_checkpointing", "true") < whole
    assert peak(f"{stage}per_device_train_batch_size", "2") < whole
    assert peak(f"{stage}optim", "adamw_bnb_8bit") < whole
    assert peak(f"{stage}offload_optimizer", "true") == whole - base["optimizer"]
    again = [f"{stage}gradient_checkpointing", "true"]
    assert peak(*again, f"{stage}offload_teacher", "true") < peak(*again)
    assert peak("--adapter.r", "32") < whole
    assert peak(f"{stage}window", "1024") < whole
    assert peak("--model.dtype", "float32") > whole
    assert peak("--adapter.dropout", "0.1") > whole


def test_refusals(recipe, capsys, cache, tmp_path):
    for arguments, words in (
        (["--gpu-memory", "lots"], "24GiB"),
        (["--gpu-memory", "24"], "got 24 bytes. Name the unit: 24GiB"),
        (["--stages.restoration.window", "100000"], "native window"),
        (["--model.name", str(tmp_path / "nowhere")], "no folder"),
        (["--model.name", str(tmp_path / "nowhere")], "config.json is enough for a plan"),
    ):
        assert main(["plan", str(recipe), *arguments]) == 2
        assert words in capsys.readouterr().err
    assert main(["plan"]) == 2
    assert "--calibrate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * 2**30), ("80 GB", 80e9), ("1.5gib", 1.5 * 2**30), ("4096", 4096), ("2 B", 2)],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


def test_measured_rates_are_kept_and_used(cache, planned, capsys):
    assert main(["plan", "--calibrate", "--json"]) == 0
    measured = Rates.from_dict(json.loads(capsys.readouterr().out))
    assert stored_rates(measured.device) == measured
    assert min(measured.gemm, measured.bandwidth, measured.host["student"]) > 0
    if measured.device != "cpu":
        return
    plan = planned("--model.device", "cpu")
    assert plan["rates"]["device"] == "cpu" and plan["seconds"] > 0


def test_rates_of_another_version_are_named(recipe, cache, capsys):
    old = shipped_rates().to_dict() | {"device": "cpu", "versions": {"torch": "1.0"}}
    store(Rates.from_dict(old))
    assert main(["plan", str(recipe), "--model.device", "cpu"]) == 0
    assert "measured with torch 1.0" in capsys.readouterr().out
    assert main(["plan", str(recipe)]) == 0
    assert "measured with" not in capsys.readouterr().out


def test_slower_devices_take_longer(cache, planned):
    fast = shipped_rates()
    slow = Rates.from_dict(fast.to_dict() | {"device": "cpu", "gemm": fast.gemm / 1e6})
    assert planned("--model.device", "cpu")["seconds"] is None  # not known yet
    store(slow)
    assert planned("--model.device", "cpu")["seconds"] > planned()["seconds"]
