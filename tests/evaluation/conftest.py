import contextlib

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from linearard.evaluation.passkey import FILLER, INTRODUCTION, QUESTION

VOCAB = 500


def byte_level(*, bos=False, merge_over_spaces=False):
    """A byte-level BPE trained on the filler prose: any text round-trips."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=not merge_over_spaces
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*FILLER, INTRODUCTION, QUESTION], trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", model_max_length=64)


def word_level(*, digits=True):
    """Words and single digits; decodes with spaces of its own. Without digits it loses any key."""
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    text = " ".join([*FILLER, INTRODUCTION, QUESTION, "The pass key is . Remember it is"])
    words = dict.fromkeys(["[UNK]", *(word for word, _ in split.pre_tokenize_str(text))])
    words |= dict.fromkeys("0123456789" if digits else "")
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


@pytest.fixture(scope="session")
def tokenizer():
    return byte_level()


@pytest.fixture(scope="session")
def other_tokenizers():
    return {
        "byte level": byte_level(),
        "start token": byte_level(bos=True),
        "merges over spaces": byte_level(merge_over_spaces=True),
        "word level": word_level(),
        "without digits": word_level(digits=False),
    }


def tiny(config_name="LlamaConfig", **options):
    """A random causal LM whose predictions differ clearly from token to token."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, config_name)(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.4,
        pad_token_id=None,
        **options,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def model():
    return tiny()


@pytest.fixture(scope="session")
def make_model():
    return tiny


@pytest.fixture(scope="session")
def make_views():
    """Views that divide the rotary frequencies, and the list of entries and exits."""

    def make(model, log=None):
        rotary = model.model.rotary_emb
        native = rotary.inv_freq.clone()

        @contextlib.contextmanager
        def view(name, factor):
            before = rotary.inv_freq.clone()
            if log is not None:
                log.append(name)
            rotary.inv_freq.copy_(native / factor)
            try:
                yield model
            finally:
                rotary.inv_freq.copy_(before)
                if log is not None:
                    log.append(f"/{name}")

        factors = {"original": 1, "stretched": 8, "restored": 2}
        return {name: lambda n=name, f=factor: view(n, f) for name, factor in factors.items()}

    return make


@pytest.fixture(scope="session")
def documents():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB, (n,), generator=generator) for n in (401, 30, 977, 41)]


@pytest.fixture
def small_chunks(monkeypatch):
    """Logits of seven positions at a time."""
    monkeypatch.setattr("linearard.model.causal_lm.LOGIT_ELEMENTS", 7 * VOCAB)


class Oracle(torch.nn.Module):
    """Knows the next token of its input and predicts it `shift` places off: 0 is always right."""

    def __init__(self, shift):
        super().__init__()
        from transformers import LlamaConfig

        self.config = LlamaConfig(vocab_size=VOCAB)
        self.shift, self.device, self.dtype = shift, torch.device("cpu"), torch.float32
        self.head = torch.nn.Identity()

    def get_decoder(self):
        return self.decode

    def get_output_embeddings(self):
        return self.head

    def decode(self, input_ids, attention_mask=None, use_cache=None):
        from transformers.modeling_outputs import BaseModelOutput

        following = (input_ids.roll(-1, 1) + self.shift) % VOCAB
        one_hot = torch.nn.functional.one_hot(following, VOCAB).float()
        return BaseModelOutput(last_hidden_state=20 * one_hot)


@pytest.fixture(params=[0, 1], ids=["always right", "always wrong"])
def oracle(request):
    """A model and the score it must get."""
    return Oracle(request.param), 1.0 - request.param
