"""Records of conversations go through the tokenizer's chat template."""

import json

import pytest

from linearard.data import DataConfig, token_blocks, token_documents
from linearard.errors import DataError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ('system', 'user', 'assistant') %}{{ raise_exception('no ' + m.role) }}{% endif %}"
    "[{{ m.role }}] {{ m.content }} </s>{% endfor %}"
)
TURNS = [("user", "what is a relation"), ("assistant", "a book of query and key")]
TEXT = "[user] what is a relation </s>[assistant] a book of query and key </s>"


@pytest.fixture
def read(tmp_path, make_tokenizer):
    def make(rows, *, bos=True, template=TEMPLATE, name="a.jsonl", **settings):
        text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
        (tmp_path / name).write_text(text)
        tokenizer = make_tokenizer(bos)
        tokenizer.chat_template = template
        options = {"validation_fraction": 0.0, "cache_dir": str(tmp_path / "cache")} | settings
        config = DataConfig(str(tmp_path / name), **options)
        found = token_documents(config, tokenizer, split="train", min_tokens=0)
        return [tokenizer.decode(ids) for ids in found]

    return make


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("bos", [True, False])
def test_both_kinds_of_records(read, name, bos):
    said = [{"role": role, "content": content} for role, content in TURNS]
    shared = [
        {"from": {"user": "human", "assistant": "gpt"}[role], "value": content}
        for role, content in TURNS
    ]
    rows = [{"messages": said, "source": "x"}, {"conversations": shared}, {"text": "a book"}]
    # What stands before every text stands there once, whoever puts it.
    assert read(rows, name=name, bos=bos) == ["<s>" + TEXT, "<s>" + TEXT, "<s>" * bos + "a book"]


def test_a_key_of_another_name(read):
    said = [{"role": role, "content": content} for role, content in TURNS]
    assert read([{"dialog": said, "text": "none"}], text_column="dialog") == ["<s>" + TEXT]


def test_parquet(tmp_path, make_tokenizer):
    import pyarrow as pa
    import pyarrow.parquet as pq

    said = [{"role": role, "content": content} for role, content in TURNS]
    pq.write_table(pa.table({"messages": [said, said]}), tmp_path / "a.parquet")
    tokenizer = make_tokenizer(bos=True)
    tokenizer.chat_template = TEMPLATE
    data = DataConfig(
        str(tmp_path), validation_fraction=0.0, cache_dir=str(tmp_path / "c"), pack=True
    )
    blocks = token_blocks(data, tokenizer, 40, split="train", count=None, progress=False)
    begins = {tokenizer.decode(block["input_ids"])[:10] for block in blocks}
    assert any(text.startswith("<s>[user]") for text in begins)


def test_another_template_is_another_text(read):
    said = [{"role": role, "content": content} for role, content in TURNS]
    other = TEMPLATE.replace("[{{ m.role }}]", "{{ m.role }}:")
    first, second = (read([{"messages": said}], template=t)[0] for t in (TEMPLATE, other))
    assert first == "<s>" + TEXT and second == first.replace("[", "").replace("]", ":")


def test_what_a_template_does_not_take(read):
    said = [{"role": "user", "content": "a"}]
    with pytest.raises(DataError, match=r"takes the conversation at .*a\.jsonl:2, got no tool"):
        read([{"messages": said}, {"messages": [{"role": "tool", "content": "a"}]}])
    with pytest.raises(DataError, match=r"the conversation at .*a\.jsonl:1.*chat template"):
        read([{"messages": said}], template=None)
