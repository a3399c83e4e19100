"""Loading: what is found where, and what every broken folder says."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import write_gguf

import tiny
from linearard.errors import DeviceError, ModelError, RecipeError
from linearard.model import (
    ModelConfig,
    load_config,
    load_model,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
)


def on_cpu(folder, **changes):
    return ModelConfig(**{"name": str(folder), "device": "cpu", "dtype": "float32"} | changes)


@torch.no_grad()
def logits(model):
    return model(input_ids=tiny.tokens()).logits


@pytest.fixture
def folder(base_folder, tmp_path):
    return shutil.copytree(base_folder, tmp_path / "model")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder(base_folder):
    model, tokenizer = load_model(on_cpu(base_folder))
    assert torch.equal(logits(model), logits(tiny.tiny_model()))
    assert not model.training and tokenizer.eos_token == "</s>"
    assert load_tokenizer(on_cpu(base_folder)).vocab == tokenizer.vocab
    assert load_config(on_cpu(base_folder)).max_position_embeddings == tiny.WINDOW


def test_bfloat16_leaves_the_frequencies_in_float32(base_folder):
    model, _ = load_model(on_cpu(base_folder, dtype="bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    tiny.tiny_restorable(model=model)  # the live check agrees


def test_attention_can_be_chosen(base_folder):
    model, _ = load_model(on_cpu(base_folder, attn_implementation="eager"))
    assert model.config._attn_implementation == "eager"


# What is done to a good folder, and what the message must say.
BROKEN = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "model_type"),
    "broken configuration": (
        lambda f: (f / "config.json").write_text("{"),
        "not a valid JSON file",
    ),
    "unknown type": (lambda f: edit_json(f / "config.json", model_type="zorg"), "`zorg`"),
    "no language model": (lambda f: edit_json(f / "config.json", model_type="vit"), "ViTConfig"),
    "other sizes": (lambda f: edit_json(f / "config.json", hidden_size=64), "mismatched_sizes"),
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:9000]
        ),
        "incomplete metadata",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
    "unknown attention": (None, "nonsense"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_readable_error(case, folder):
    destroy, says = BROKEN[case]
    changes = {}
    if destroy:
        destroy(folder)
    else:
        changes = {"attn_implementation": "nonsense"}
    with pytest.raises(ModelError) as caught:
        load_model(on_cpu(folder, **changes))
    message = str(caught.value)
    assert says in message and str(folder) in message
    assert "\n" not in message and ".." not in message


def test_an_absent_weight_is_not_made_up(folder):
    """transformers fills it with random numbers and a warning."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"without 1 of them.*layers\.1\.self_attn\.q_proj"):
        load_model(on_cpu(folder))


def test_tied_embeddings_are_no_absent_weight(tmp_path):
    tiny.save_tiny_base(tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model, _ = load_model(on_cpu(tmp_path))
    assert torch.equal(logits(model), logits(tiny.tiny_model(tie_word_embeddings=True)))


def test_a_tokenizer_with_more_tokens_than_rows(tmp_path):
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 99)
    tiny.save_tiny_base(tmp_path, vocab_size=100, **special)
    with pytest.raises(ModelError, match=r"at most 100 tokens.*one of 258"):
        load_model(on_cpu(tmp_path))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/no/such/folder", "no folder at /no/such/folder"),
        ("./no-such-folder", "no folder at ./no-such-folder"),
        ("/no/such/file.gguf", "no file at /no/such/file.gguf"),
        ("package:no_such_package", "no such package"),
        ("package:no.such.package", "no such package"),
        ("package:", "no such package"),
        ("package:json", "0 .gguf files in it"),
    ],
)
def test_a_place_without_a_model(name, says):
    with pytest.raises(ModelError) as caught:
        load_config(ModelConfig(name=name))
    assert says in str(caught.value)


def test_a_gguf_file_becomes_a_plain_model(tmp_path, llama):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, llama)
    for config in (
        on_cpu(path),
        on_cpu(tmp_path, gguf_file="tiny.gguf"),
    ):
        model, _ = load_model(config)
        torch.testing.assert_close(logits(model), logits(llama), rtol=1e-5, atol=1e-5)
    tiny.tiny_restorable(model=model)  # trainable
    model.save_pretrained(tmp_path / "saved")
    assert "quantization" not in (tmp_path / "saved" / "config.json").read_text()


def test_a_broken_gguf_file(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUFxxxx")
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        load_model(on_cpu(path))


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="'gpu'"):
        resolve_device("gpu")
    count = torch.cuda.device_count()
    with pytest.raises(DeviceError, match=f"{count} usable CUDA devices"):
        resolve_device(f"cuda:{count}")


def test_a_launched_process_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:3")
    assert resolve_device("cuda:1") == torch.device("cuda:1")


def test_precisions():
    cpu = torch.device("cpu")
    assert resolve_dtype("bfloat16", cpu) == torch.bfloat16
    assert resolve_dtype("float32", cpu) == torch.float32
    assert resolve_dtype("auto", cpu) in (torch.bfloat16, torch.float32)
    with pytest.raises(DeviceError, match="float16"):
        resolve_dtype("float16", cpu)


def test_precisions_of_an_old_gpu(monkeypatch):
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    assert resolve_dtype("auto", gpu) == torch.float32
    assert resolve_dtype("float16", gpu) == torch.float16
    with pytest.raises(DeviceError, match="an old one"):
        resolve_dtype("bfloat16", gpu)


@pytest.mark.parametrize("changes", [{"name": ""}, {"name": None}, {"dtype": "bf16"}])
def test_bad_configurations_are_refused(changes):
    (name,) = changes
    with pytest.raises(RecipeError, match=f"model.{name}"):
        ModelConfig(**{"name": "x"} | changes)


def test_a_configuration_with_sizes_that_differ_by_layer_is_read(tmp_path):
    """Gemma 4 has no one head_dim, and raises where it is asked for; the refusal comes later, in words."""
    import transformers

    if not hasattr(transformers, "Gemma4TextConfig"):
        pytest.skip("this version of transformers does not know Gemma 4")
    transformers.Gemma4TextConfig(head_dim=16, num_hidden_layers=2).save_pretrained(tmp_path)
    assert load_config(ModelConfig(name=str(tmp_path))).model_type == "gemma4_text"
