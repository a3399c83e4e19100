"""Save, load, and every way in which a checkpoint can be the wrong one."""

import json
import shutil

import pytest
import torch

import tiny
from linearard.errors import CheckpointError
from linearard.model import (
    METADATA_FILE,
    ModelConfig,
    load_restored,
    load_weights,
    read_metadata,
    save_checkpoint,
)

KINDS = ("lora", "direct")
YARN = {"rope_type": "yarn", "factor": 4}


@torch.no_grad()
def logits(restorable):
    return restorable.model(input_ids=tiny.tokens(), use_cache=False).logits


def trained(seed=1, **kwargs):
    restorable = tiny.tiny_restorable(**kwargs)
    tiny.perturb_adapter(restorable, seed=seed)
    return restorable


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_round_trip_is_exact(architecture, kind, tmp_path):
    restorable = trained(architecture=architecture, kind=kind)
    save_checkpoint(restorable, tmp_path / "new" / "folder", stage="restoration", step=7)
    other = tiny.tiny_restorable(architecture, kind=kind)
    assert not torch.equal(logits(other), logits(restorable))
    metadata = load_weights(other, tmp_path / "new" / "folder")
    assert metadata["stage"] == "restoration" and metadata["step"] == 7
    pairs = zip(other.adapter.parameters(), restorable.adapter.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(logits(other), logits(restorable))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_text", [True, False])
def test_load_restored_needs_the_folder_alone(kind, as_text, base_folder, tmp_path):
    config = ModelConfig(name=str(base_folder), device="cpu", dtype="float32")
    from linearard.model import AdapterConfig, RestorableModel

    restorable = RestorableModel.load(
        config, YARN, AdapterConfig(kind=kind, r=4, alpha=8.0, dropout=0.0)
    )
    tiny.perturb_adapter(restorable)
    save_checkpoint(restorable, tmp_path)
    again = load_restored(str(tmp_path) if as_text else tmp_path, device="cpu", dtype="float32")
    assert torch.equal(logits(again), logits(restorable))
    assert again.name == str(base_folder)
    assert not any(p.requires_grad for p in again.model.parameters())
    assert again.tokenizer("rope").input_ids == restorable.tokenizer("rope").input_ids


def test_the_checkpoint_carries_its_rope(tmp_path):
    restorable = trained(scaling=YARN)
    save_checkpoint(restorable, tmp_path)
    rope = read_metadata(tmp_path)["rope"]
    assert rope["scaling"]["rope_type"] == "yarn" and rope["scaling"]["factor"] == 4.0
    assert (rope["native_window"], rope["target_window"]) == (tiny.WINDOW, 4 * tiny.WINDOW)
    live = restorable.model.get_base_model().model.rotary_emb
    (table,) = rope["tables"].values()
    assert torch.equal(torch.tensor(table["inv_freq"]), live.inv_freq)
    assert table["attention_scaling"] == live.attention_scaling != 1.0


def test_files_are_few_and_safe(tmp_path):
    save_checkpoint(trained(), tmp_path / "lora")
    save_checkpoint(trained(kind="direct"), tmp_path / "direct")
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in (tmp_path / "lora").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        METADATA_FILE,
        "complete.json",
        *tokenizer,
    }
    assert {p.name for p in (tmp_path / "direct").iterdir()} == {
        "direct_weights.safetensors",
        METADATA_FILE,
        "complete.json",
        *tokenizer,
    }


def test_a_readme_in_the_folder_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    save_checkpoint(trained(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(trained(), folder)
    return folder


def refusal(folder, **kwargs):
    restorable = tiny.tiny_restorable(**kwargs)
    before = logits(restorable)
    with pytest.raises(CheckpointError) as caught:
        load_weights(restorable, folder)
    assert torch.equal(logits(restorable), before)  # nothing was read half-way
    return str(caught.value)


def test_another_rank(checkpoint):
    message = refusal(checkpoint, r=8)
    assert "adapter with 18 tensors" in message and "adapter.r" in message


def test_another_kind(checkpoint):
    assert "direct_weights.safetensors for adapter.kind 'direct'" in refusal(
        checkpoint, kind="direct"
    )


def test_other_targets(checkpoint):
    assert "6 tensors that do not" in refusal(checkpoint, target_modules=["q_proj", "k_proj"])


def test_other_weights(checkpoint):
    message = refusal(checkpoint, changes={"seed": 5}, name="my-model")
    assert "a checkpoint of my-model" in message and "one of tiny" in message


def test_another_architecture(checkpoint):
    assert "weights or architecture differ" in refusal(checkpoint, architecture="qwen2")


@pytest.mark.parametrize(
    "scaling",
    [{"rope_type": "linear", "factor": 2}, YARN, {"rope_type": "dynamic", "factor": 4}],
)
def test_another_rope(checkpoint, scaling):
    message = refusal(checkpoint, scaling=scaling)
    assert f"rope_type={scaling['rope_type']}" in message  # what was asked for
    assert "one trained for rope_type=linear, factor=4.0" in message  # what it has


def test_the_frequencies_count_not_the_words(checkpoint):
    """The same table under another name is the same RoPE."""
    table = [10000.0 ** (-i / 4) / 4 for i in range(4)]
    same = tiny.tiny_restorable(scaling={"rope_type": "table", "factor": 4, "inv_freq": table})
    load_weights(same, checkpoint)


def test_a_missing_weight_file(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors" in refusal(tmp_path)


def test_a_weight_file_cut_short(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "whole safetensors file" in refusal(tmp_path)


def test_no_checkpoint_at_all(tmp_path):
    assert METADATA_FILE in refusal(tmp_path)
    with pytest.raises(CheckpointError, match="RUN/final"):
        load_restored(tmp_path / "nowhere")


def test_metadata_that_is_not_json(tmp_path):
    (tmp_path / METADATA_FILE).write_text("{")
    assert "valid JSON" in refusal(tmp_path)


@pytest.mark.parametrize("content", [{"format": 99}, {}, [1]])
def test_metadata_of_another_format(tmp_path, content):
    (tmp_path / METADATA_FILE).write_text(json.dumps(content))
    assert "checkpoint format 1" in refusal(tmp_path)
