import random

import pytest

WORDS = "relation query key value rope window the of and stretched token a model book"


def _make_tokenizer(bos: bool = False, eos: bool = True):
    """A byte-level BPE of a few hundred tokens, trained on the spot."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([WORDS], trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    special = {"bos_token": "<s>"} | ({"eos_token": "</s>"} if eos else {})
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=8, **special)


@pytest.fixture(scope="session")
def make_tokenizer():
    return _make_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return _make_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer():
    return _make_tokenizer(bos=True)


@pytest.fixture
def books(tmp_path):
    """A folder of 23 text files of 5 to 330 words, sorted by name."""
    rng = random.Random(0)
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(23):
        words = rng.choices(WORDS.split(), k=5 + (number * 41) % 331)
        (folder / f"{number:02}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture
def texts(books):
    return [path.read_text() for path in sorted(books.iterdir())]
