"""The tokenizer of a GGUF as its metadata say: what stands before a text, and how words are split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from linearard.errors import ModelError
from linearard.model.gguf_file import GgufFile

_KEY = "tokenizer.ggml."
_CONTROL = 3  # type of tokens that no text is made of
#: Vocabularies that llama.cpp puts a BOS token before where the file does not say whether to.
_LLAMA3 = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2")
_WITH_BOS = (*_LLAMA3, "jina-v5-nano", "tekken", "chameleon")
#: Digits that a token may hold, by the rule that splits text before merging.
_DIGITS = dict.fromkeys((*_LLAMA3, "gpt-4o", "llama4"), 3) | dict.fromkeys(
    ("qwen2", "deepseek-r1-qwen", "tekken", "smollm"), 1
)
_SENTENCES = (
    "The relation of queries and keys changes when frequencies are divided",
    "Somewhere in the harbour a lighthouse keeper was mending his nets",
    "Das Wetter bleibt heute wechselhaft",
)
_NUMBERS = ("20260731", "33333333")


def settle_tokenizer(tokenizer: Any, file: GgufFile, name: str) -> None:
    """Make a tokenizer that `transformers` read from a GGUF put before a text what the file says.

    Then it is compared with the file's own tokens, scores and merges on a few sentences: some versions of
    `transformers` split the words of some vocabularies into pieces.

    Args:
        tokenizer: a fast tokenizer, changed in place.
        file: the GGUF.
        name: how the user named the model.

    Raises:
        ModelError: it splits a sentence in another way than the file's tokens do.
    """
    tokens = file.value(_KEY + "tokens")
    if not tokens:
        return
    _put_around(tokenizer, file, tokens)
    for text, expected in _expected(file, tokens):
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        if found != expected:
            raise _other_tokens(name, text, [tokens[i] for i in expected], found, tokens)


def _put_around(tokenizer: Any, file: GgufFile, tokens: Sequence[str]) -> None:
    """BOS before a text and EOS behind it, or neither, as the flags or the kind of vocabulary say."""
    from tokenizers.processors import TemplateProcessing

    kind, split = file.value(_KEY + "model"), file.value(_KEY + "pre")
    flags = {
        "bos": file.value(_KEY + "add_bos_token", kind == "llama" or split in _WITH_BOS),
        "eos": file.value(_KEY + "add_eos_token", False),
    }
    around: dict[str, int] = {}
    for which, put in flags.items():
        token = file.value(f"{_KEY}{which}_token_id")
        if put and token is not None and token < len(tokens):
            around[which] = int(token)
            setattr(tokenizer, f"{which}_token", tokens[token])
    for which in flags:  # what the class would put by itself, now or when it is read again
        if hasattr(tokenizer, f"add_{which}_token"):
            setattr(tokenizer, f"add_{which}_token", which in around)
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    before, behind = ([around[w]] if w in around else [] for w in flags)
    if tokenizer("a")["input_ids"] == [*before, *plain, *behind]:
        return
    ids = {tokens[token]: token for token in around.values()}
    text = [*(tokens[i] for i in before), "$A", *(tokens[i] for i in behind)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=text, pair=[*text, "$B:1"], special_tokens=list(ids.items())
    )


def _expected(file: GgufFile, tokens: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Texts and their ids by the file's own scores or merges; none for kinds that are not known here."""
    kind, ids = file.value(_KEY + "model"), {token: i for i, token in enumerate(tokens)}
    whole = _whole_tokens(file, tokens)
    if kind == "llama" and (scores := file.value(_KEY + "scores")):
        space = "▁" if file.value(_KEY + "add_space_prefix", True) else ""
        rank = {token: -score for token, score in zip(tokens, scores, strict=True)}
        texts = [(text, space + text.replace(" ", "▁")) for text in _SENTENCES]
        made = [(text, _merged(list(spelt), lambda a, b: rank.get(a + b))) for text, spelt in texts]
        return whole + [
            (t, [ids[p] for p in parts]) for t, parts in made if ids.keys() >= set(parts)
        ]
    if kind == "gpt2" and (merges := file.value(_KEY + "merges")):
        order = {tuple(merge.split(" ", 1)): i for i, merge in enumerate(merges)}
        texts = [(text, text.replace(" ", " Ġ").split(" ")) for text in _SENTENCES]
        if digits := _DIGITS.get(file.value(_KEY + "pre")):
            texts += [(n, [n[i : i + digits] for i in range(0, len(n), digits)]) for n in _NUMBERS]
        made = []
        for text, words in texts:
            parts = [
                p for word in words for p in _merged(list(word), lambda a, b: order.get((a, b)))
            ]
            made.append((text, parts))
        return whole + [
            (t, [ids[p] for p in parts]) for t, parts in made if ids.keys() >= set(parts)
        ]
    return whole


def _whole_tokens(file: GgufFile, tokens: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Control tokens, which a text holds whole: those that texts begin and end with."""
    types = file.value(_KEY + "token_type") or []
    named = {file.value(f"{_KEY}{which}_token_id") for which in ("bos", "eos")} - {None}
    return [(tokens[i], [i]) for i in sorted(named) if i < len(types) and types[i] == _CONTROL]


def _merged(parts: list[str], rank: Any) -> list[str]:
    """Neighbours merged by rank, the lowest first, until none is left that may be."""
    while True:
        ranks = [rank(a, b) for a, b in pairwise(parts)]
        found = [r for r in ranks if r is not None]
        if not found:
            return parts
        place = ranks.index(min(found))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def _other_tokens(
    name: str, text: str, expected: list[str], found: list[int], tokens: Sequence[str]
) -> ModelError:
    import transformers

    read = [tokens[i] if i < len(tokens) else str(i) for i in found]
    place = next((i for i, (a, b) in enumerate(zip(expected, read, strict=False)) if a != b), 0)
    part = slice(max(place - 1, 0), place + 4)
    return ModelError(
        expected=f"a tokenizer that splits {text!r} as the GGUF's tokens do, at {expected[part]}",
        got=f"{read[part]} by transformers {transformers.__version__} ({name})",
        fix="Name the model's folder or hub id, or take another version of transformers (5.24 reads more "
        "GGUF vocabularies rightly than earlier ones).",
    )
