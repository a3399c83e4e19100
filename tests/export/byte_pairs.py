"""A byte-level BPE with merges, which llama.cpp asks for."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

ROWS = 264  # of an embedding with a few more rows than tokens


def byte_pairs(first=None, *, begins=False):
    """With three merges, a token that people write and one that only a template does.

    Args:
        first: the pre-tokenizer; GPT-2's where nothing is given.
        begins: whether every text gets a beginning.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    vocabulary = {token: i for i, token in enumerate([*letters, "th", "the", "Ġthe"])}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = first or pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(["<think>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", chat_template="{{ messages[0].content }}"
    )
    if begins:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|end|> $A", special_tokens=[("<|end|>", 260)]
        )
        tokenizer.bos_token = "<|end|>"
    return tokenizer
