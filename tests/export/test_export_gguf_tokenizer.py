"""The tokenizer in a GGUF: written from transformers, or copied from the base model's GGUF."""

import gguf
import pytest
from byte_pairs import ROWS, byte_pairs
from tokenizers import Regex, pre_tokenizers

import tiny
from linearard.errors import ModelError
from linearard.export import export_model
from linearard.export.gguf import GgufOptions, check_gguf

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(digits):
    return pre_tokenizers.Split(Regex(_WORDS.replace("DIGITS", digits)), "isolated")


def export(tokenizer, folder, options=None, name="tiny"):
    model = tiny.tiny_restorable(name=name, changes={"vocab_size": ROWS})
    model.tokenizer = tokenizer
    found = export_model(model, folder, "gguf", gguf=options, overwrite=True)
    reader = gguf.GGUFReader(folder / found["file"])
    fields = {f.name: f.contents() for f in reader.fields.values()}
    return folder / found["file"], fields


def test_everything_of_a_byte_level_bpe_is_written(tmp_path):
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = byte_pairs(gpt2)
    _, fields = export(tokenizer, tmp_path)
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == ROWS and tokens[261] == "[PAD261]"
    assert {token: tokens[index] for token, index in tokenizer.get_vocab().items()} == {
        token: token for token in tokenizer.get_vocab()
    }
    assert fields["tokenizer.ggml.merges"] == ["t h", "th e", "Ġ the"]
    kinds = fields["tokenizer.ggml.token_type"]
    assert kinds[tokens.index("<think>")] == gguf.TokenType.USER_DEFINED
    assert kinds[tokens.index("<|end|>")] == gguf.TokenType.CONTROL
    assert kinds[tokens.index("the")] == gguf.TokenType.NORMAL
    assert kinds[262] == gguf.TokenType.UNUSED
    assert fields["tokenizer.ggml.eos_token_id"] == tokens.index("<|end|>")
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == "{{ messages[0].content }}"


def test_a_beginning_that_the_tokenizer_adds_is_said(tmp_path):
    _, fields = export(byte_pairs(begins=True), tmp_path)
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.bos_token_id"] == 260


def test_a_bpe_without_merges_is_refused():
    """llama.cpp would not load the file."""
    with pytest.raises(ModelError, match="a byte-level BPE with merges"):
        check_gguf(tiny.tiny_config(), tiny.LINEAR, GgufOptions(), tokenizer=tiny.tiny_tokenizer())


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            "smollm",
        ),
        (pre_tokenizers.Sequence([split(""), BYTES]), "qwen2"),
        (pre_tokenizers.Sequence([split("{1,3}"), BYTES]), "llama-bpe"),
    ],
)
def test_ways_to_cut_have_llama_cpps_names(first, name, tmp_path):
    _, fields = export(byte_pairs(first), tmp_path)
    assert fields["tokenizer.ggml.pre"] == name


@pytest.mark.parametrize(
    "first",
    [
        pre_tokenizers.Sequence([split("{1,2}"), BYTES]),
        pre_tokenizers.Sequence([split("")]),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(False), BYTES]),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Whitespace(),
    ],
)
def test_other_ways_are_refused_with_what_to_do(first):
    with pytest.raises(ModelError, match="--gguf-tokenizer"):
        check_gguf(tiny.tiny_config(), tiny.LINEAR, GgufOptions(), tokenizer=byte_pairs(first))


def test_a_base_in_a_gguf_keeps_its_tokenizer_and_template(tmp_path):
    """Down to keys that transformers does not know; the base's own rotation and size are not copied."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    path, fields = export(byte_pairs(gpt2), tmp_path / "base")
    rich = tmp_path / "base.gguf"
    writer = gguf.GGUFWriter(rich, "llama")
    for field in gguf.GGUFReader(path).fields.values():
        if field.name.startswith("tokenizer."):
            array = field.types[0] == gguf.GGUFValueType.ARRAY
            sub = field.types[-1] if array else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    writer.add_key_value("tokenizer.ggml.remove_extra_whitespaces", True, gguf.GGUFValueType.BOOL)
    writer.add_license("apache-2.0")
    writer.add_context_length(7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    unknown = byte_pairs(pre_tokenizers.Whitespace())  # nothing is read from it
    _, copied = export(unknown, tmp_path / "out", name=str(rich))
    own = {k: v for k, v in fields.items() if k.startswith("tokenizer.")}
    assert own.items() <= copied.items() and copied["tokenizer.ggml.remove_extra_whitespaces"]
    assert copied["general.license"] == "apache-2.0"
    assert copied["llama.context_length"] == 4 * tiny.WINDOW


def test_a_gguf_of_another_model_is_no_source(tmp_path):
    path, _ = export(byte_pairs(pre_tokenizers.ByteLevel(add_prefix_space=False)), tmp_path)
    options = GgufOptions(tokenizer=path)
    with pytest.raises(ModelError, match="258 tokens as its embedding has rows"):
        check_gguf(tiny.tiny_config(), tiny.LINEAR, options, tokenizer=tiny.tiny_tokenizer())
    with pytest.raises(ModelError, match="no file at"):
        missing = GgufOptions(tokenizer=tmp_path / "none.gguf")
        check_gguf(tiny.tiny_config(), tiny.LINEAR, missing, tokenizer=tiny.tiny_tokenizer())
