"""GGUF exports: what the file says is what was trained, read by gguf, transformers and llama.cpp."""

import gguf
import numpy as np
import pytest
import torch
from byte_pairs import ROWS, byte_pairs

import tiny
from linearard.errors import CheckpointError, ModelError, RecipeError, RopeError
from linearard.export import export_model
from linearard.export.gguf import (
    GgufOptions,
    check_gguf,
    gguf_rotation,
    llama_cpp_logits,
    llama_cpp_version,
    write_gguf,
)
from linearard.export.gguf import write as write_module

LONG = 3 * tiny.WINDOW
YARN = tiny.SCALINGS["yarn"]
RECIPE_YARN = YARN | {"attention_factor": 1.0, "beta_fast": 4.0}
HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
#: Architectures and what llama.cpp's class for them can rotate by.
CASES = [(a, name, scaling) for a in ("llama", "qwen2") for name, scaling in tiny.SCALINGS.items()]
CASES += [("llama", "recipe's yarn", RECIPE_YARN), ("phi3", "yarn", YARN)]
CASES += [("phi3 partial", "recipe's yarn", YARN | {"beta_fast": 4.0})]
CASES += [
    (a, n, tiny.SCALINGS[n]) for a in ("qwen3", "olmo2") for n in ("linear", "dynamic", "yarn")
]
CASES += [("gemma3", n, tiny.SCALINGS[n]) for n in ("linear", "dynamic")]
CHANGES = {
    "phi3 partial": {"rope_parameters": HALF, "head_dim": 8},
    "gemma3": {"sliding_window": 24},
}


def restorable(architecture, scaling, **kwargs):
    changes = {"vocab_size": ROWS} | CHANGES.get(architecture, {})
    found = tiny.tiny_restorable(architecture.split()[0], scaling, changes=changes, **kwargs)
    found.tokenizer = byte_pairs()
    tiny.perturb_adapter(found, size=0.1)
    return found


class Exported:
    def __init__(self, folder, architecture, scaling):
        model = restorable(architecture, scaling)
        with torch.no_grad():
            self.ids = tiny.tokens(1, LONG)
            self.student = model.model(input_ids=self.ids, use_cache=False).logits[0]
        self.tables = model.rope.tables("stretched")
        self.found = export_model(model, folder, "gguf", gguf=GgufOptions("f32"))
        self.folder, self.path = folder, folder / self.found["file"]
        self.table = self.tables.get("full_attention", self.tables.get(""))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("gguf"), {}

    def get(architecture, name, scaling):
        key = f"{architecture} {name}"
        if key not in made:
            made[key] = Exported(root / key, architecture, scaling)
        return made[key]

    return get


def relative_error(got, expected):
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def value(reader, key):
    return reader.get_field(key).contents()


@pytest.mark.parametrize("name", tiny.SCALINGS)
def test_base_and_divisors_give_the_table(name, exported):
    """The formula of ggml's rope, written here once more: base ** (-2i / d) / divisor."""
    export = exported("llama", name, tiny.SCALINGS[name])
    reader = gguf.GGUFReader(export.path)
    (divisors,) = (t.data for t in reader.tensors if t.name == "rope_freqs.weight")
    base, dim = value(reader, "llama.rope.freq_base"), value(reader, "llama.rope.dimension_count")
    plain = base ** (-np.arange(0, dim, 2) / dim)
    np.testing.assert_allclose(plain / divisors, export.table.inv_freq.numpy(), rtol=1e-6)
    assert reader.get_field("llama.rope.scaling.type") is None  # nothing else scales
    assert value(reader, "llama.context_length") == 4 * tiny.WINDOW
    assert (export.folder / "Modelfile").read_text().split() == [
        *("FROM", f"./{export.path.name}"),
        *("PARAMETER", "num_ctx", str(4 * tiny.WINDOW)),
    ]


@pytest.mark.parametrize(("architecture", "name", "scaling"), CASES)
def test_the_file_says_the_trained_table(architecture, name, scaling, exported):
    export = exported(architecture, name, scaling)
    said = gguf_rotation(export.path)
    torch.testing.assert_close(
        said.frequencies, export.table.inv_freq.double(), rtol=1e-5, atol=0.0
    )
    assert said.window == 4 * tiny.WINDOW


@pytest.mark.parametrize("name", ["linear", "yarn", "table"])
def test_transformers_reads_the_weights_with_the_attention_factor_in_them(name, exported):
    from transformers import AutoModelForCausalLM

    export = exported("llama", name, tiny.SCALINGS[name])
    model = AutoModelForCausalLM.from_pretrained(
        export.folder, gguf_file=export.path.name, dtype=torch.float32
    )
    model.model.rotary_emb.inv_freq = export.table.inv_freq
    model.model.rotary_emb.attention_scaling = 1.0
    with torch.no_grad():
        logits = model.eval()(input_ids=export.ids, use_cache=False).logits[0]
    assert relative_error(logits, export.student) < 1e-5


@pytest.mark.skipif(llama_cpp_version() is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize(("architecture", "name", "scaling"), CASES)
def test_llama_cpp_without_flags_is_the_student(architecture, name, scaling, exported):
    export = exported(architecture, name, scaling)
    logits = torch.cat(list(llama_cpp_logits(export.path, export.ids[0].tolist(), threads=1)))
    assert relative_error(logits, export.student) < 1e-3
    assert export.found["relative_error"] < 1e-3 and "llama-cpp" in export.found["checked_with"]


@pytest.mark.parametrize(
    ("architecture", "scaling", "error"),
    [
        ("gemma2", tiny.LINEAR, "a model_type that --format gguf can write"),
        ("mistral", tiny.LINEAR, "no sliding window"),
        ("qwen3", RECIPE_YARN, "QWEN3 class can compute"),
        ("olmo2", tiny.SCALINGS["llama3"], "OLMO2 class can compute"),
        ("gemma3", YARN, "linear or dynamic, got"),
    ],
)
def test_what_llama_cpp_would_run_wrongly_is_refused(architecture, scaling, error):
    with pytest.raises((ModelError, RopeError), match=error):
        check_gguf(tiny.tiny_config(architecture), scaling, GgufOptions())


def test_a_window_as_long_as_the_target_hides_nothing():
    config = tiny.tiny_config("mistral", sliding_window=4 * tiny.WINDOW)
    check_gguf(config, tiny.LINEAR, GgufOptions())


def test_an_unknown_type_is_refused():
    with pytest.raises(RecipeError, match="a type among auto, f32, f16, bf16, q8_0"):
        check_gguf(tiny.tiny_config(), tiny.LINEAR, GgufOptions("q4_k"))


@pytest.mark.parametrize(
    ("kind", "bound"), [("f32", 0), ("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 2**-7)]
)
def test_types_of_numbers(kind, bound, tmp_path):
    model = restorable("llama", tiny.LINEAR)
    merged = model.adapter.merge()
    write_gguf(merged, model.rope, tmp_path / "x.gguf", kind, name="x", tokenizer=model.tokenizer)
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    tensors = {t.name: t for t in reader.tensors}
    kinds = {
        t.tensor_type.name.lower() for t in tensors.values() if t.name.startswith("blk.0.ffn_u")
    }
    assert kinds == {kind}
    assert {t.tensor_type.name for t in tensors.values() if len(t.shape) == 1} == {"F32"}
    got = tensors["blk.1.ffn_up.weight"]
    got = torch.from_numpy(gguf.quants.dequantize(got.data, got.tensor_type).copy())
    wanted = merged.model.layers[1].mlp.up_proj.weight
    largest = wanted.abs().amax(-1, keepdim=True)
    assert ((got - wanted).abs() <= bound * largest).all()
    assert tensors["blk.1.ffn_down.weight"].tensor_type.name == (
        "F16" if kind == "q8_0" else kind.upper()
    )


def narrow(size):
    """A model whose base is bfloat16, trained by so much."""
    model = tiny.tiny_model(vocab_size=ROWS)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    found = tiny.tiny_restorable(model=model)
    found.tokenizer = byte_pairs()
    tiny.perturb_adapter(found, size=size)
    return found


def trained_weight(found, name):
    """In float32, with its rows in the order that llama.cpp rotates: (i, i + 4) of each head of 8."""
    layer = found.model.get_base_model().get_submodule(name)
    weight = layer.get_base_layer().weight.float() + layer.get_delta_weight("default").float()
    return weight.view(-1, 2, 4, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@pytest.mark.parametrize("size", [2e-4, 1e-1])
def test_a_file_of_half_precision_keeps_what_training_changed(size, tmp_path):
    found = narrow(size)
    wanted = trained_weight(found, "model.layers.1.self_attn.k_proj").detach()
    about = export_model(found, tmp_path / "out", "gguf", gguf=GgufOptions("bf16"))
    reader = gguf.GGUFReader(tmp_path / "out" / about["file"])
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    (got,) = (t for t in reader.tensors if t.name == "blk.1.attn_k.weight")
    got = torch.from_numpy(gguf.quants.dequantize(got.data, got.tensor_type).copy())
    small = size < 1e-2
    assert about["merge"]["dtype"] == ("float32" if small else "bfloat16")
    assert kinds["blk.1.attn_k.weight"] == ("F32" if small else "BF16")
    assert kinds["blk.1.ffn_up.weight"] == "BF16" and kinds["blk.0.attn_output.weight"] == "BF16"
    torch.testing.assert_close(got, wanted, rtol=1e-6 if small else 2**-8, atol=0)
    assert about["merge"]["change"]["share"] > 0.95


def test_eight_bits_are_made_of_the_trained_weights_themselves(tmp_path):
    about = export_model(narrow(2e-4), tmp_path / "out", "gguf", gguf=GgufOptions("q8_0"))
    assert about["merge"]["dtype"] == "float32"
    assert about["merge"]["change"]["share"] == pytest.approx(1, abs=1e-6)


def test_a_half_that_loses_the_change_of_a_model_in_float32_is_refused(tmp_path):
    found = restorable("llama", tiny.LINEAR)
    with torch.no_grad():
        for parameter in found.adapter.parameters():
            parameter.mul_(1e-3)
    with pytest.raises(RecipeError, match=r"what training changed, got .* Give --gguf-type f32"):
        export_model(found, tmp_path / "out", "gguf", gguf=GgufOptions("bf16"))
    assert not (tmp_path / "out").exists()


def test_weights_beyond_float16_are_refused(tmp_path):
    model = restorable("llama", tiny.LINEAR)
    with torch.no_grad():
        model.model.get_input_embeddings().weight[3, 5] = 1e5
    with pytest.raises(RecipeError, match="--gguf-type bf16"):
        export_model(model, tmp_path, "gguf", gguf=GgufOptions("f16"))
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_file_with_another_table_is_noticed(tmp_path, monkeypatch):
    spoil = write_module.rotation_of

    def spoilt(table, scaling, family):
        found = spoil(table, scaling, family)
        found.divisors[1] *= 1.001
        return found

    monkeypatch.setattr(write_module, "rotation_of", spoilt)
    with pytest.raises(CheckpointError, match="a GGUF with the trained table"):
        export_model(restorable("llama", tiny.LINEAR), tmp_path, "gguf")
    assert not list(tmp_path.glob("*.gguf*"))
