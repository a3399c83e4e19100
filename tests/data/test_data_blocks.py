import json
import os
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from linearard.data import BlockDataset, DataConfig, token_blocks, token_documents
from linearard.data.cache import cached_array, cached_documents
from linearard.data.streams import TokenStream
from linearard.errors import DataError, RecipeError


@pytest.fixture
def blocks(tmp_path, tokenizer):
    def build(train, size=41, *, tokenizer=tokenizer, split="train", count=None, **settings):
        settings = {"validation_fraction": 0.0, "cache_dir": str(tmp_path / "cache")} | settings
        config = DataConfig(str(train), **settings)
        return token_blocks(config, tokenizer, size, split=split, count=count, progress=False)

    return build


def rows(dataset):
    return [tuple(item["input_ids"].tolist()) for item in dataset]


def naive_ids(tokenizer, text):
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def naive_blocks(tokenizer, texts, size, start=()):
    found, room = [], size - len(start)
    for text in texts:
        ids = naive_ids(tokenizer, text)
        found += [(*start, *ids[i : i + room]) for i in range(0, len(ids) - room + 1, room)]
    return found


@pytest.mark.parametrize("size", [2, 41, 128])
def test_blocks_are_the_documents_cut(blocks, books, texts, tokenizer, size):
    dataset = blocks(books, size)
    expected = naive_blocks(tokenizer, texts, size)
    assert Counter(rows(dataset)) == Counter(expected)
    assert dataset.tokens == len(expected) * size
    item = dataset[0]["input_ids"]
    assert item.dtype == torch.int64 and item.shape == (size,)
    assert rows(dataset) != expected  # shuffled


def test_blocks_begin_with_bos(blocks, books, texts, bos_tokenizer):
    dataset = blocks(books, tokenizer=bos_tokenizer)
    assert Counter(rows(dataset)) == Counter(naive_blocks(bos_tokenizer, texts, 41, start=(0,)))


def test_blocks_begin_with_all_that_stands_before_a_text(blocks, books, texts, make_tokenizer):
    from tokenizers import processors

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> <s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    dataset = blocks(books, tokenizer=tokenizer)
    assert Counter(rows(dataset)) == Counter(naive_blocks(tokenizer, texts, 41, start=(1, 0)))
    with pytest.raises(RecipeError, match="block_size to be more than the 2 tokens that stand"):
        blocks(books, 2, tokenizer=tokenizer)


@pytest.mark.parametrize("bos", [False, True])
def test_packed(blocks, books, texts, make_tokenizer, bos):
    tokenizer = make_tokenizer(bos)
    stream = [i for text in texts for i in (1, *naive_ids(tokenizer, text))][1:]
    room, start = 41 - bos, (0,) * bos
    expected = [(*start, *stream[i : i + room]) for i in range(0, len(stream) - room + 1, room)]
    assert Counter(rows(blocks(books, tokenizer=tokenizer, pack=True))) == Counter(expected)


def test_many_batches_give_the_same_blocks(blocks, books, monkeypatch):
    whole = rows(blocks(books))
    monkeypatch.setattr("linearard.data.tokens._BATCH_CHARACTERS", 500)
    assert rows(blocks(books, cache_dir=str(books / "other"))) == whole


def test_no_length_warning(blocks, books, caplog):
    blocks(books)
    assert "longer than" not in caplog.text


def test_large_vocabulary_keeps_its_ids(blocks, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in (0, 1, 65_535, 65_536, 70_001)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "a.txt").write_text("w1 w65535 w65536 w70001")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert rows(blocks(tmp_path / "a.txt", 4, tokenizer=tokenizer)) == [(1, 65535, 65536, 70001)]


def test_order_and_fingerprint(blocks, books, make_tokenizer):
    base = blocks(books, seed=3)
    again = blocks(books, seed=3)
    elsewhere = blocks(books, seed=3, cache_dir=str(books / "other"))
    assert rows(again) == rows(base) == rows(elsewhere)
    assert again.fingerprint == base.fingerprint == elsewhere.fingerprint
    other = blocks(books, seed=4)
    assert rows(other) != rows(base) and Counter(rows(other)) == Counter(rows(base))
    (books / "22.txt").write_text("the text changed " * 30)
    variants = [
        base,
        other,
        blocks(books, seed=3),
        blocks(books, seed=3, count=5),
        blocks(books, 20, seed=3),
        blocks(books, seed=3, pack=True),
        blocks(books, seed=3, repeated_passages=0.2),
        blocks(books, seed=3, repeated_passages=0.2, repeated_opening=4),
        blocks(books, seed=3, max_documents=9),
        blocks(books, seed=3, validation_fraction=0.3),
        blocks(books, seed=3, validation_fraction=0.3, split="validation"),
        blocks(books, seed=3, tokenizer=make_tokenizer(bos=True)),
    ]
    assert len({dataset.fingerprint for dataset in variants}) == len(variants)


def test_count_draws_from_all_documents(blocks, tmp_path):
    for letter in "abcdefgh":
        (tmp_path / f"{letter}.txt").write_text(letter * 4000)
    whole = rows(blocks(tmp_path / "*.txt"))
    some = rows(blocks(tmp_path / "*.txt", count=60))
    assert some == whole[:60]
    assert len({row[5] for row in some}) == 8


def test_validation_blocks_are_disjoint(blocks, books, texts, tokenizer):
    sides = [
        Counter(rows(blocks(books, 10, split=split, validation_fraction=0.3)))
        for split in ("train", "validation")
    ]
    assert sides[0] + sides[1] == Counter(naive_blocks(tokenizer, texts, 10))
    assert all(sides)


def test_survives_pickling_as_a_path(blocks, books):
    dataset = blocks(books)
    data = pickle.dumps(dataset)
    assert rows(pickle.loads(data)) == rows(dataset)
    assert len(data) < dataset.tokens
    with pytest.raises(IndexError):
        dataset[len(dataset)]


# --- cache


def test_second_call_does_not_tokenise(blocks, books, tokenizer, monkeypatch):
    first = rows(blocks(books))
    tokenizer("cut", truncation=True, max_length=1)  # state is no identity

    def refuse(*args, **kwargs):
        raise AssertionError("tokenised again")

    monkeypatch.setattr("linearard.data.streams.encode_documents", refuse)
    assert rows(blocks(books)) == first
    assert len(blocks(books, seed=7, count=2)) == 2
    assert blocks(books, size=13) and blocks(books, pack=True)  # other windows, same tokens
    os.utime(books / "00.txt", ns=(1, 1))
    with pytest.raises(AssertionError, match="tokenised again"):
        blocks(books)


def test_failed_build_leaves_nothing(blocks, books, tmp_path):
    (books / "zz.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="offset 0"):
        blocks(books)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


BUILD = """
import os, sys, time
from pathlib import Path
import numpy as np
from linearard.data.cache import cached_array
def build():
    print("building", flush=True)
    yield np.arange(12, dtype=np.uint16).reshape(3, 4)
    {middle}
    yield np.arange(12, 20, dtype=np.uint16).reshape(2, 4)
print(cached_array(Path(sys.argv[1]), "key", build))
"""


def start_builder(folder, middle):
    command = [sys.executable, "-c", BUILD.format(middle=middle), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_half_way(tmp_path):
    with start_builder(tmp_path, "sys.stdout.flush(); os.kill(os.getpid(), 9)") as builder:
        assert builder.communicate()[0] == "building\n"
    assert builder.returncode == -9
    assert list(tmp_path.glob(".key.*"))
    path = cached_array(tmp_path, "key", lambda: [np.ones((7, 3), np.int32)])
    assert np.array_equal(np.load(path), np.ones((7, 3)))


def test_concurrent_builders(tmp_path):
    builders = [start_builder(tmp_path, "time.sleep(4)") for _ in range(2)]
    outputs = [builder.communicate()[0].splitlines() for builder in builders]
    assert sorted(map(len, outputs)) == [1, 2]  # one of them built
    assert outputs[0][-1] == outputs[1][-1]
    assert np.array_equal(np.load(outputs[0][-1], mmap_mode="r"), np.arange(20).reshape(5, 4))


def test_documents_are_written_once_and_as_they_are(tmp_path):
    texts = ["one\ntwo", "\u00fcber\u2028", "\ud83d"]
    path = cached_documents(tmp_path / "cache", "key", lambda: texts)
    assert [json.loads(line)["text"] for line in path.read_bytes().splitlines()] == texts
    before = path.stat().st_mtime_ns
    assert cached_documents(tmp_path / "cache", "key", lambda: ["other"]) == path
    assert path.stat().st_mtime_ns == before


def flip(path, place):
    """One bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "an id": lambda path: flip(path, -9),
    "the first id": lambda path: flip(path, 128),
    "the header": lambda path: flip(path, 70),
    "the magic": lambda path: flip(path, 0),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-64]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0" * 64),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "another's name": lambda path: path.rename(path.with_stem(path.stem[:-4] + "0000")),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cache_is_built_again_with_a_word(kind, blocks, books, tmp_path, caplog):
    whole = blocks(books)
    fingerprint, windows = whole.fingerprint, rows(whole)
    del whole  # it reads the file in place
    (path,) = (tmp_path / "cache").glob("*.npy")
    before = path.read_bytes()
    blocks(books)
    assert not caplog.text
    DAMAGE[kind](path)
    again = blocks(books)
    assert rows(again) == windows and again.fingerprint == fingerprint
    (path,) = (tmp_path / "cache").glob("*.npy")
    assert path.read_bytes() == before
    assert caplog.text.count("was damaged") == 1 and "built again" in caplog.text


@pytest.mark.parametrize("kind", ["an id", "cut", "empty"])
def test_damaged_documents_are_written_again(kind, tmp_path, caplog):
    first = cached_documents(tmp_path, "key", lambda: ["one", "two and three"])
    DAMAGE[kind](first)
    assert cached_documents(tmp_path, "key", lambda: ["one", "two and three"]) == first
    assert [json.loads(line)["text"] for line in first.read_text().splitlines()] == [
        "one",
        "two and three",
    ]
    assert "was damaged" in caplog.text


def test_unwritable_cache(blocks, books, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Set `cache_dir`"):
        blocks(books, cache_dir=str(tmp_path / "file" / "cache"))


# --- hub data, through the library's own reader of a folder


@pytest.fixture
def hub_set(tmp_path, monkeypatch):
    """owner/name: 400 documents of 40 words; only the network is replaced."""
    import datasets

    folder = tmp_path / "set"
    folder.mkdir()
    lines = [json.dumps({"text": f"book {number} the rope " * 10}) for number in range(400)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    load = datasets.load_dataset

    def load_from_folder(name, config_name, **settings):
        assert (name, config_name) == ("owner/name", "small")
        return load(str(folder), **settings)

    monkeypatch.setattr(datasets, "load_dataset", load_from_folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return "owner/name:small"


def test_stream_is_read_as_far_as_needed(blocks, hub_set, tmp_path):
    dataset = blocks(hub_set, count=10)
    (path,) = (tmp_path / "cache").glob("*.npy")
    whole = blocks(hub_set)
    read = sum(length // 41 for length in TokenStream(path).bounds[1])
    assert len(dataset) == 10 and 40 <= read < 50 < len(whole)
    assert set(rows(dataset)) <= set(rows(whole))
    downloaded = blocks(hub_set, streaming=False, cache_dir=str(tmp_path / "other"))
    assert Counter(rows(downloaded)) == Counter(rows(whole))


# --- whole documents


def test_whole_documents(books, texts, tokenizer, bos_tokenizer):
    config = DataConfig(str(books), validation_fraction=0.0)
    found = token_documents(config, tokenizer, split="train", min_tokens=0)
    assert [ids.tolist() for ids in found] == [naive_ids(tokenizer, text) for text in texts]
    assert found[0].dtype == torch.int64
    found = token_documents(config, bos_tokenizer, split="train", min_tokens=101)
    lengths = [len(ids) for ids in found]
    assert all(ids[0] == 0 and ids[1] != 0 for ids in found)
    assert min(lengths) >= 101 and len(found) == sum(
        len(naive_ids(tokenizer, text)) >= 100 for text in texts
    )
    with pytest.raises(DataError, match=r"at least 90000 tokens, got a longest document of \d{3}"):
        token_documents(config, tokenizer, split="train", min_tokens=90000)
    with pytest.raises(DataError, match="expected validation documents, got none"):
        token_documents(config, tokenizer, split="validation", min_tokens=1)


# --- what can be wrong


def test_wrong_arguments(blocks, books):
    with pytest.raises(RecipeError, match="block_size"):
        blocks(books, 1)
    with pytest.raises(RecipeError, match="count"):
        blocks(books, count=0)


def test_window_longer_than_every_document(blocks, books, texts, tokenizer):
    longest = max(len(naive_ids(tokenizer, text)) for text in texts)
    message = f"windows of 5000, got a longest document of {longest} tokens .*`pack: true`"
    with pytest.raises(DataError, match=message):
        blocks(books, 5000)
    assert len(blocks(books, longest)) >= 1
    with pytest.raises(DataError, match=r"got \d{4} in all .*or give more text"):
        blocks(books, 10**6, pack=True)


def test_too_few_blocks(blocks, books):
    available = len(blocks(books))
    message = f"expected {available + 1} blocks of 41 tokens for train, got {available} in"
    with pytest.raises(DataError, match=message + r".*fewer blocks.*`pack: true`"):
        blocks(books, count=available + 1)
    assert len(blocks(books, count=available)) == available


def test_no_documents(blocks, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}')
    with pytest.raises(DataError, match="expected train documents, got none in"):
        blocks(tmp_path / "a.jsonl")
    (tmp_path / "b.txt").write_text("one document")
    with pytest.raises(DataError, match="raise `validation_fraction`"):
        blocks(tmp_path / "b.txt", split="validation")


def test_tokenizer_that_does_not_serve(blocks, books, make_tokenizer):
    with pytest.raises(DataError, match="expected a fast tokenizer, got object"):
        blocks(books, tokenizer=object())
    with pytest.raises(DataError, match="an end-of-text token"):
        blocks(books, tokenizer=make_tokenizer(eos=False), pack=True)


def test_dataset_of_a_plain_stream(tmp_path):
    np.save(tmp_path / "a.npy", np.array([7, 8, 9, 65535, 5, 6, 65535], np.uint16)[:, None])
    stream = TokenStream(tmp_path / "a.npy")
    assert [part.tolist() for part in stream.bounds] == [[0, 4], [3, 2]]
    dataset = BlockDataset(stream, np.array([4, 0]), 3, [1], None, "f")
    assert rows(dataset) == [(1, 5, 6), (1, 7, 8)] and dataset.tokens == 6
    assert rows(BlockDataset(stream, np.array([1]), 4, [], 2, "f")) == [(8, 9, 2, 5)]
