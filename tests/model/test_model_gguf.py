"""A GGUF is read as its own metadata say: RoPE, windows, what stands before a text, how words are split."""

import math

import numpy as np
import pytest
import torch
from tiny_gguf import byte_vocabulary, piece_vocabulary, write_gguf
from transformers import LlamaConfig

import tiny
from linearard.errors import ModelError
from linearard.model import ModelConfig, load_config, load_model, load_tokenizer
from linearard.model.gguf_file import GgufFile
from linearard.rope.views import RopeViews

WIDTH = 8  # head_dim of a tiny Llama
PLAIN = 1e4 ** -(torch.arange(0, WIDTH, 2) / WIDTH)


def on_cpu(path):
    return ModelConfig(name=str(path), device="cpu", dtype="float32")


@pytest.fixture
def read(tmp_path, llama):
    """A function that writes a GGUF with these settings and gives its configuration."""

    def make(settings=lambda writer: None, vocabulary=byte_vocabulary):
        write_gguf(tmp_path / "tiny.gguf", llama, settings, vocabulary)
        return on_cpu(tmp_path / "tiny.gguf")

    return make


def scaled(kind, factor, window=None, freqs=None, **numbers):
    """Settings of a scaling: `rope.scaling.*`, and a tensor of factors."""

    def settings(writer):
        if kind:
            writer.add_string("llama.rope.scaling.type", kind)
            writer.add_float32("llama.rope.scaling.factor", factor)
        if window:
            writer.add_uint32("llama.rope.scaling.original_context_length", window)
        for key, value in numbers.items():
            writer.add_float32(f"llama.rope.{key.replace('__', '.')}", value)
        if freqs is not None:
            writer.add_tensor("rope_freqs.weight", np.array(freqs, np.float32))

    return settings


def yarn_table(factor, window, fast=32.0, slow=1.0):
    """YaRN's frequencies, formed from the paper's formula in float64."""
    dims = np.arange(0, WIDTH, 2, dtype=np.float64)
    plain = 1e4 ** -(dims / WIDTH)

    def place(turns):
        return WIDTH * math.log(window / (turns * 2 * math.pi)) / (2 * math.log(1e4))

    low, high = max(math.floor(place(fast)), 0), min(math.ceil(place(slow)), WIDTH - 1)
    ramp = np.clip((dims / 2 - low) / max(high - low, 0.001), 0, 1)
    return torch.tensor(plain * (1 - ramp) + plain / factor * ramp)


LLAMA3 = [
    1.0,
    1.0,
    1.0,
    8.0,
]  # of Llama 3's formula where a head has 8 dimensions and the base is 10,000
#: Settings, the frequencies that they mean, and the factor on cos and sin.
TABLES = {
    "none": (scaled("none", 4.0), PLAIN, 1.0),
    "linear": (scaled("linear", 4.0, 16), PLAIN / 4, 1.0),
    "a factor alone": (scaled(None, 1, scale_linear=2.0), PLAIN / 2, 1.0),
    "yarn": (scaled("yarn", 4.0, 640), yarn_table(4, 640), 1 + 0.1 * math.log(4)),
    "yarn, its factor": (
        scaled("yarn", 4.0, 640, scaling__attn_factor=0.9),
        yarn_table(4, 640),
        0.9 * (1 + 0.1 * math.log(4)),
    ),
    "yarn, its betas": (
        scaled("yarn", 4.0, 640, scaling__yarn_beta_fast=8.0, scaling__yarn_beta_slow=2.0),
        yarn_table(4, 640, 8, 2),
        1 + 0.1 * math.log(4),
    ),
    "factors": (scaled(None, 1, freqs=[1, 1, 4, 8]), PLAIN / torch.tensor([1, 1, 4, 8]), 1.0),
    "factors and linear": (
        scaled("linear", 2.0, freqs=[1, 1, 4, 8]),
        PLAIN / torch.tensor([2, 2, 8, 16]),
        1.0,
    ),
    "linear and a factor on cos": (
        scaled("linear", 2.0, scaling__attn_factor=1.25),
        PLAIN / 2,
        1.25,
    ),
    "another base": (scaled(None, 1, freq_base=500.0), 500 ** -(torch.arange(0, 8, 2) / 8), 1.0),
}


@pytest.mark.parametrize("kind", TABLES)
def test_the_original_rotates_as_the_file_says(kind, read, llama):
    settings, table, attention = TABLES[kind]
    config = read(settings)
    model, _ = load_model(config)
    live = model.model.rotary_emb
    torch.testing.assert_close(live.inv_freq, table.float(), rtol=1e-6, atol=0)
    assert live.attention_scaling == pytest.approx(attention)
    assert load_config(config).rope_parameters == model.config.rope_parameters
    with torch.no_grad():
        ids = tiny.tokens(1, 50)
        rotary = llama.model.rotary_emb
        before = rotary.inv_freq, rotary.attention_scaling
        rotary.inv_freq, rotary.attention_scaling = table.float(), attention
        expected = llama(ids).logits
        rotary.inv_freq, rotary.attention_scaling = before
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    # What every view of a restorable model starts from, in the window of the file.
    native = RopeViews(model, {"rope_type": "table", "factor": 8, "inv_freq": (table / 9).tolist()})
    torch.testing.assert_close(native.tables("native")[""].inv_freq, table.float())


def test_llama3_is_known_by_its_factors():
    """As every GGUF of Llama 3.1 and 3.2 has them, computed here by transformers."""
    from linearard.model.gguf_rope import _llama3

    for factor in (8.0, 32.0):
        said = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        config = LlamaConfig(
            hidden_size=256, num_attention_heads=2, rope_parameters=said | {"rope_theta": 5e5}
        )
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled_table, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        plain = 5e5 ** -(torch.arange(0, 128, 2) / 128)
        assert _llama3((plain / scaled_table).numpy(), 5e5, 128) == said
        assert _llama3((plain / scaled_table).numpy(), 4e5, 128) is None


REFUSED = {
    "yarn_attn_factor": (scaled("yarn", 4.0, scaling__yarn_attn_factor=1.2), "no reading that all"),
    "yarn_ext_factor": (scaled("yarn", 4.0, scaling__yarn_ext_factor=0.5), "yarn_ext_factor"),
    "log multiplier": (scaled("yarn", 4.0, scaling__yarn_log_multiplier=0.1), "log_multiplier"),
    "alpha": (scaled("linear", 4.0, scaling__alpha=1000.0), "rope.scaling.alpha"),
    "another type": (scaled("su", 4.0), "type 'su'"),
    "two scalings": (scaled("yarn", 4.0, freqs=[1, 1, 4, 8]), "yarn and rope_freqs.weight"),
    "too few factors": (scaled(None, 1, freqs=[1, 4]), "rope_freqs.weight of 2 numbers"),
    "a factor of zero": (scaled(None, 1, freqs=[1, 0, 4, 8]), "rope_freqs.weight of 4 numbers"),
    "longrope": (
        lambda w: w.add_tensor("rope_factors_long.weight", np.ones(4, np.float32)),
        "rope_factors tensors",
    ),
    "part of a head": (lambda w: w.add_rope_dimension_count(4), "dimension_count 4 of heads of 8"),
    "a sliding window": (lambda w: w.add_sliding_window(24), "sliding_window 24.*without such"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_rightly_is_refused_before_weights(kind, read):
    settings, says = REFUSED[kind]
    config = read(settings)
    with pytest.raises(ModelError, match=f"{says}.*Name the model's folder") as caught:
        load_config(config)
    with pytest.raises(ModelError) as again:
        load_model(config)
    assert str(again.value) == str(caught.value)


@pytest.mark.parametrize("kind", ["head", "middle", "version", "empty"])
def test_a_broken_header(kind, read, tmp_path):
    config = read()
    whole = (tmp_path / "tiny.gguf").read_bytes()
    cut = {
        "head": whole[:13],
        "middle": whole[:900],
        "version": b"GGUF\x01" + whole[5:],
        "empty": b"",
    }
    (tmp_path / "tiny.gguf").write_bytes(cut[kind])
    with pytest.raises(Exception, match=r"."):
        GgufFile(str(tmp_path / "tiny.gguf"))
    with pytest.raises(ModelError, match=r"tiny\.gguf"):
        load_tokenizer(config)


def flagged(bos=None, eos=None, pre=None):
    def settings(writer):
        for add, flag in ((writer.add_add_bos_token, bos), (writer.add_add_eos_token, eos)):
            if flag is not None:
                add(flag)
        if pre is not None:
            writer.add_tokenizer_pre(pre)

    return settings


@pytest.mark.parametrize(
    ("vocabulary", "settings", "around"),
    [
        (byte_vocabulary, flagged(), ([], [])),
        (byte_vocabulary, flagged(bos=True), ([256], [])),
        (byte_vocabulary, flagged(bos=True, eos=True), ([256], [257])),
        (byte_vocabulary, flagged(pre="llama-bpe"), ([256], [])),
        (byte_vocabulary, flagged(bos=False, pre="llama-bpe"), ([], [])),
        (piece_vocabulary, flagged(), ([1], [])),
        (piece_vocabulary, flagged(bos=True), ([1], [])),
        (piece_vocabulary, flagged(bos=False), ([], [])),
    ],
)
def test_what_stands_before_a_text(vocabulary, settings, around, read, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(read(settings, vocabulary))
    tokenizer.save_pretrained(tmp_path / "saved")
    for found in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        plain = found("the relation", add_special_tokens=False)["input_ids"]
        before, behind = around
        assert found("the relation")["input_ids"] == [*before, *plain, *behind]


def test_words_are_split_as_the_file_says(read):
    tokenizer = load_tokenizer(read(vocabulary=piece_vocabulary))
    found = tokenizer("the relation", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(found) == ["▁the", "▁relation"]


@pytest.mark.parametrize("vocabulary", [byte_vocabulary, piece_vocabulary])
def test_a_reader_that_splits_words_in_another_way(vocabulary, read, monkeypatch):
    """As some versions of transformers do."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained

    def other(*arguments, **options):
        tokenizer = plain(*arguments, **options)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("e", "removed")
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", other)
    with pytest.raises(ModelError, match=r"a tokenizer that splits '.*by transformers"):
        load_tokenizer(read(vocabulary=vocabulary))
