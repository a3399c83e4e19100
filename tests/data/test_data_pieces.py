"""A long document gives the same tokens in pieces as in one, in bounded memory."""

import random
import string
import subprocess
import sys
from functools import partial

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from linearard.data import pieces
from linearard.data.tokens import encode_documents, encode_whole

WORDS = (
    "relation query key value rope window the of and stretched token a model book 1234 don't naïve "
    "语言 🙂"
)
_SPLITS = {
    "byte level": (None, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
    "over spaces": (
        None,
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
    ),
    "pieces of words": (None, pre_tokenizers.Metaspace(), decoders.Metaspace()),
    "pieces of text": (
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        None,
        None,
    ),
    "composed": (normalizers.NFKC(), pre_tokenizers.ByteLevel(), decoders.ByteLevel()),
}


def tokenizer_of(kind):
    normalizer, split, decoder = _SPLITS[kind]
    unigram = kind == "pieces of words"
    backend = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token="<unk>"))
    if normalizer is not None:
        backend.normalizer = normalizer
    if split is not None:
        backend.pre_tokenizer = split
        backend.decoder = decoder
    options = {"vocab_size": 500, "special_tokens": ["<unk>", "<|end|>"], "show_progress": False}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if unigram:
        trainer = trainers.UnigramTrainer(unk_token="<unk>", initial_alphabet=alphabet, **options)
    else:
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **options)
    chance = random.Random(0)
    lines = [" ".join(chance.choices(WORDS.split(), k=60)) for _ in range(40)]
    backend.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<|end|>")


def prose(chance, length):
    """Words, numbers, punctuation, runs of blanks and special tokens."""
    parts = []
    while sum(map(len, parts)) < length:
        parts += chance.choices(WORDS.split(), k=40)
        parts.append(
            chance.choice([".", "\n\n", "\t", "   ", "<|end|>", "e\u0301", "-" * 9, "\r\n"])
        )
    return " ".join(parts)[:length]


TEXTS = {
    "prose": lambda c, n: prose(c, n),
    "no blanks": lambda c, n: prose(c, 2 * n).replace(" ", "")[:n],
    "one letter": lambda c, n: "a" * n,
    "blanks alone": lambda c, n: " " * n,
    "a period": lambda c, n: ("relation query" * n)[:n],
    "noise": lambda c, n: "".join(c.choices(string.printable + "éß语🙂\u0301\u200d", k=n)),
    "lines": lambda c, n: ("\n" * 700 + prose(c, 900)) * (n // 1600),
}


@pytest.fixture
def short_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 3000)
    monkeypatch.setattr(pieces, "_OVERLAP", 800)
    monkeypatch.setattr(pieces, "_MARGIN", 200)


@pytest.fixture(scope="module", params=_SPLITS)
def any_tokenizer(request):
    return tokenizer_of(request.param)


@pytest.mark.parametrize("kind", TEXTS)
def test_pieces_give_the_tokens_of_the_whole(kind, any_tokenizer, short_pieces):
    for seed in range(3):
        chance = random.Random(seed)
        text = TEXTS[kind](chance, 20_000 + 997 * seed)
        whole = any_tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        found = list(pieces.encode_together(any_tokenizer, [text]))
        assert [i for part, _ in found for i in part] == whole
        assert [ended for _, ended in found] == [False] * (len(found) - 1) + [True]
        if kind == "prose":
            assert len(found) >= 8  # and not one piece that was made ever longer


def test_long_and_short_documents_in_turn(any_tokenizer, short_pieces):
    chance = random.Random(0)
    lengths = (900, 9000, 40, 2900, 3001, 0, 12_000, 1)
    texts = [prose(chance, length) for length in lengths] + ["a" * 9000]
    found = encode_whole(any_tokenizer, iter(texts), progress=False, characters=None)
    expected = any_tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    assert list(found) == [encoding.ids for encoding in expected]


def test_batches_of_any_size_give_the_same_parts(any_tokenizer, short_pieces, monkeypatch):
    chance = random.Random(1)
    texts = [prose(chance, length) for length in (9000, 40, 7000, 5000, 12_000)]
    encode = partial(encode_documents, any_tokenizer, progress=False, characters=None)
    together = list(encode(texts))
    monkeypatch.setattr("linearard.data.tokens._BATCH_CHARACTERS", 1)
    assert list(encode(texts)) == together


def test_memory_is_bounded(tmp_path, make_tokenizer):
    """A line of 4 MB; 125 bytes a character would be 500 MB, the text and its tokens are some 20 MB."""
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    code = """if True:
        import json, re, sys
        from pathlib import Path
        from transformers import AutoTokenizer
        from linearard.data import DataConfig, token_blocks
        folder = Path(sys.argv[1])
        text = "relation query key value rope window the of and stretched\\n" * 66_000
        (folder / "a.jsonl").write_text(json.dumps({"text": text}))
        del text
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
        before = peak()
        data = DataConfig(str(folder / "a.jsonl"), validation_fraction=0.0, cache_dir=str(folder / "c"))
        blocks = token_blocks(data, tokenizer, 64, split="train", count=3, progress=False)
        assert len(blocks) == 3
        print(peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 250 * 1024
