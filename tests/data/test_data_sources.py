import gzip
import json
import os
import re
import subprocess
import sys

import pytest

from linearard.data import DataConfig
from linearard.data.documentation import read_documentation
from linearard.data.files import find_files
from linearard.data.hub import read_hub
from linearard.data.rows import documents as row_documents
from linearard.data.sources import open_split
from linearard.errors import DataError, RecipeError


def documents(train, split="train", **settings):
    config = DataConfig(str(train), **({"validation_fraction": 0.0} | settings))
    return list(open_split(config, split).read())


def write_parquet(path, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", ["{}", "{}/*.txt", "{}/**/*", "{}/../books"])
def test_folder_and_globs(books, texts, name):
    assert documents(name.format(books)) == texts


def test_every_kind_of_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.TXT").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "b.md").write_text("# three")
    rows = [json.dumps({"text": text, "n": 1}) for text in ("four", "", "fünf")]
    (tmp_path / "c.jsonl").write_text("\n\n".join(rows) + "\n" + json.dumps({"text": None}))
    with gzip.open(tmp_path / "sub" / "d.jsonl.gz", "wt") as file:
        file.write(rows[2])
    write_parquet(
        tmp_path / "sub" / "e.parquet", {"text": ["six", None, " ", "seven"], "n": [0] * 4}
    )
    (tmp_path / "ignored.json").write_text("{}")
    assert documents(tmp_path) == ["one\ntwo", "# three", "four", "fünf", "fünf", "six", "seven"]
    assert documents(tmp_path, max_documents=2) == ["one\ntwo", "# three"]


def test_source_code_and_manuals_are_plain_text(tmp_path):
    (tmp_path / "a.py").write_text('"""One."""\n')
    (tmp_path / "b.RST").write_text("Two\n===\n")
    (tmp_path / "__init__.py").touch()  # marks a package: no mistake, and no document
    assert documents(tmp_path) == ['"""One."""\n', "Two\n===\n"]
    assert documents(tmp_path / "*.py") == ['"""One."""\n']


def test_text_column(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"content": "one"}))
    assert documents(path, text_column="content") == ["one"]


def test_held_out_share_is_disjoint_complete_and_stable(books, texts):
    shares = {
        side: documents(books, side, validation_fraction=0.3) for side in ("train", "validation")
    }
    assert sorted(shares["train"] + shares["validation"]) == sorted(texts)
    assert 1 <= len(shares["validation"]) < len(texts) / 2
    # A document stays on its side whatever else is there, and a growing share only adds.
    (books / "00.txt").write_text("another text")
    (books / "aa.txt").write_text("one more")
    again = documents(books, "validation", validation_fraction=0.3)
    assert set(shares["validation"]) - {texts[0]} <= set(again)
    assert set(again) <= set(documents(books, "validation", validation_fraction=0.6))


def test_validation_source(books, texts, tmp_path):
    (tmp_path / "held.txt").write_text("held out")
    settings = {"validation": str(tmp_path / "held.txt"), "validation_fraction": 0.5}
    assert documents(books, **settings) == texts
    assert documents(books, "validation", **settings) == ["held out"]
    with pytest.raises(RecipeError, match="one of train, validation"):
        documents(books, "test")


@pytest.mark.parametrize(
    "name",
    ["books/x.txt", "./books", "/none", "~/none", "none/*", "a/b/c", "a.jsonl", "a\\b", "b oo"],
)
def test_missing_path_is_never_a_hub_id(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match="an existing file") as caught:
        documents(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("train", "validation", "shared"),
    [
        ("books", "books/03.txt", "03.txt"),
        ("books/*.txt", "link", "00.txt"),
        ("pydoc", "pydoc", "pydoc"),
        ("owner/name:one", "owner/name:one", "hub:owner/name:one:same"),
    ],
)
def test_overlap(books, monkeypatch, train, validation, shared):
    monkeypatch.chdir(books.parent)
    os.symlink(books, "link")
    config = DataConfig(train, validation=validation, split="same", validation_split="same")
    with pytest.raises(DataError, match=f"{shared} in both `train` and `validation`"):
        open_split(config, "train")


def test_what_a_model_is_to_write_cannot_be_read(books, texts, monkeypatch):
    """Beside it held-out text can; and a folder of that name is a folder."""
    with pytest.raises(DataError, match="'self', which a run writes once it has the model"):
        documents("self", validation_fraction=0.0)
    assert documents("self", "validation", validation=str(books)) == texts
    books.rename(books.parent / "self")
    monkeypatch.chdir(books.parent)
    assert documents("./self", validation_fraction=0.0) == texts


def test_two_splits_of_one_hub_set_do_not_overlap():
    open_split(DataConfig("owner/name", validation="owner/name"), "train")


BAD_FILES = {
    "latin.txt": (b"caf\xe9", r"byte 0xe9 at offset 3 of .*latin\.txt"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "\xff"}', r"byte 0xff at offset 24 of"),
    "empty.txt": (b"", r"the empty file .*empty\.txt"),
    "blank.rst": (b"", r"the empty file .*blank\.rst"),
    "blank.md": (b" \n", r"the empty file .*blank\.md"),
    "blank.jsonl": (b"\n\n", r"the empty file"),
    "key.jsonl": (b'{"text": "a"}\n{"body": 1}', r"key\.jsonl:2, got keys body\..*`text_column`"),
    "number.jsonl": (b'{"text": 5}', r"number\.jsonl:1, got a int there"),
    "list.jsonl": (b'\n["text"]', r"a list at .*list\.jsonl:2"),
    "broken.jsonl": (b'{"text": "a"', r"in column 13 at .*broken\.jsonl:1"),
    "half.jsonl": (
        b'{"text": "whole \\ud83d\\ude00"}\n{"text": "cut \\ud83d"}',
        r"whole characters at .*half\.jsonl:2, got half of one, U\+D83D, at character 4",
    ),
    "half of a turn.jsonl": (
        b'{"messages": [{"role": "user", "content": "cut \\udc00"}]}',
        r"half of a turn\.jsonl:1, got half of one, U\+DC00",
    ),
    "nested.jsonl": (b'{"text": "a"}\n' + b"[" * 10**5, r"recursion.* at .*nested\.jsonl:2"),
    "digits.jsonl": (b'{"text": ' + b"1" * 5000 + b"}", r"digits.* at .*digits\.jsonl:1"),
    "object.json": (b'{"text": "a"}', r"one JSON array of objects.*got a dict of .*object\.json"),
    "lines.json": (
        b'{"text": "a"}\n{"text": "b"}',
        r"Extra data in line 2, column 1 of .*\.jsonl where",
    ),
    "mixed.json": (b'[{"text": "a"}, "b"]', r"got a str as record 1 of .*mixed\.json"),
    "key.json": (b'[{"text": "a"}, {"b": 1}]', r"key\.json record 1, got keys b"),
    "half.json": (b'[{"text": "\\udfff"}]', r"half\.json record 0, got half of one, U\+DFFF"),
    "latin.json": (b'["\xe9"]', r"byte 0xe9 at offset 2 of .*latin\.json"),
    "latin.csv": (b"text\ncaf\xe9\n", r"byte 0xe9 at offset 8 of .*latin\.csv"),
    "key.csv": (b"body\nbook\n", r"text under 'text' at .*key\.csv:2, got keys body"),
    "more.csv": (b"text,n\nbook,1\na,b,c\n", r"got more fields than .* at .*more\.csv:3"),
    "quote.csv": (b'text\n"book\n', r"got unexpected end of data at .*quote\.csv"),
    "empty.csv": (b"text\n", r"the empty file .*empty\.csv"),
    "turns.jsonl": (b'{"messages": ["hello"]}', r"both texts, at .*turns\.jsonl:1, got 'hello'"),
    "parts.jsonl": (
        b'{"messages": [{"role": "user", "content": ["a"]}]}',
        r"both texts, at .*parts\.jsonl:1, got \{'role'",
    ),
    "broken.jsonl.gz": (b"no gzip", r"broken\.jsonl\.gz: Not a gzipped file"),
    "cut.jsonl.gz": (
        gzip.compress(b'{"text": "a"}')[:-9],
        r"cut\.jsonl\.gz: Compressed file ended",
    ),
    "broken.parquet": (b"PAR1 no", r"expected a Parquet file, got .*broken\.parquet"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_named(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        documents(tmp_path / name)


def test_parquet_that_is_no_utf8(tmp_path):
    """As other writers leave it: the type says text, the bytes do not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = pa.array([b"good", b"caf\xe9", b"good"]).view(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, values.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"UTF-8 text at .*a\.parquet row 1, got byte 0xe9 at offset 3"
    ):
        documents(tmp_path)


def test_records_of_every_kind(tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps([{"text": "one"}, {"text": None}, {"text": "zw\u00f6lf"}])
    )
    (tmp_path / "b.csv").write_text('n,text\r\n1,"two, ""too"""\r\n2,"three\nlines"\r\n')
    assert documents(tmp_path / "a.json") == ["one", "zw\u00f6lf"]
    assert documents(tmp_path / "b.csv") == ['two, "too"', "three\nlines"]
    assert documents(tmp_path / "*.[jc]s*") == ["one", "zw\u00f6lf", 'two, "too"', "three\nlines"]


def test_bad_parquet_columns(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"body": ["x"], "n": [1]})
    with pytest.raises(DataError, match=r"a column 'text' in .*, got columns body, n"):
        documents(path)
    with pytest.raises(DataError, match=r"a\.parquet row 0, got a int there"):
        documents(path, text_column="n")


def test_folder_without_text(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.csv").write_text("text\nbook\n")
    with pytest.raises(DataError, match=r"text files \(\.txt.*none at"):
        documents(tmp_path)
    assert documents(tmp_path / "a.csv") == ["book"]


@pytest.mark.parametrize("streaming", [True, False])
def test_hub_reader(tmp_path, monkeypatch, streaming):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    write_parquet(folder / "train-0.parquet", {"text": ["one", None, "three"]})
    write_parquet(folder / "test-0.parquet", {"text": ["four"]})

    def read(split, column="text"):
        rows = read_hub(str(folder), None, split, streaming=streaming)
        return list(row_documents(rows, column))

    assert read("train") == ["one", "", "three"]
    assert read("test") == ["four"]
    with pytest.raises(DataError, match="split 'other' of the hub data set"):
        read("other")
    with pytest.raises(DataError, match=r"'body' at .*set \[train\] row 0, got keys text"):
        read("train", "body")


def test_hub_errors_when_offline():
    code = (
        "from linearard.data import DataConfig\n"
        "from linearard.data.sources import open_split\n"
        "next(open_split(DataConfig('nobody/nothing:some.config'), 'train').read())"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    message = result.stderr.splitlines()[-1]
    assert "DataError: expected split 'train' of the hub data set" in message
    assert "'nobody/nothing:some.config' (no such local path exists)" in message
    assert "name local files instead" in message


def test_local_text_needs_neither_datasets_nor_pyarrow(books):
    code = (
        "import sys\n"
        "from linearard.data import DataConfig\n"
        "from linearard.data.sources import open_split\n"
        f"assert list(open_split(DataConfig({str(books)!r}), 'train').read())\n"
        "assert not {'datasets', 'pyarrow', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_documentation(monkeypatch):
    monkeypatch.setenv("PRIVATE_SETTING", "must-not-be-read")
    texts = read_documentation()
    assert sum(map(len, texts)) > 1_500_000
    assert min(map(len, texts)) >= 2000
    assert len(set(texts)) > 150
    titles = {text.split("\n")[1].split(" - ")[0].strip() for text in texts}
    assert {"json", "asyncio", "logging.handlers"} <= titles
    assert not {"this", "antigravity", "tkinter", "turtle", "idlelib"} & titles
    joined = "\n".join(texts)
    assert not re.search(" at 0x[0-9a-f]", joined)
    assert "must-not-be-read" not in joined
    assert sys.base_prefix not in joined
    read_documentation.cache_clear()
    assert read_documentation() == texts


def test_documentation_failure(monkeypatch):
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    read_documentation.cache_clear()
    with pytest.raises(DataError, match="Name local text files instead of `pydoc`"):
        documents("pydoc")


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    """As one that is removed while it is searched."""

    def gone(path):
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr("os.scandir", gone)
    with pytest.raises(DataError, match=r"can be listed, got No such file or directory \("):
        find_files(str(tmp_path))
