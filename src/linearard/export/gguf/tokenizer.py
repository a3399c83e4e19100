"""The tokenizer's part of a GGUF: copied from another GGUF, or written from a byte-level BPE.

llama.cpp does not read a tokenizer's rules; it knows a list of them by name. A GGUF of the same model has
the name already, so its keys are copied, chat template included. A byte-level BPE of transformers is
written where its rules are among the few below; llama.cpp's converter makes the file for all others
(`convert_hf_to_gguf.py MODEL --vocab-only`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from linearard.errors import ModelError

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: llama.cpp's names of ways to cut a text before BPE, by the splits that tokenizers makes.
_NAMES: dict[tuple[Any, ...], str] = {
    ("gpt2",): "gpt-2",
    ("digits", "gpt2"): "smollm",
    (_QWEN2,): "qwen2",
    (_QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|"),): "llama-bpe",
}
_PREFIX = "tokenizer."


def check_tokenizer_source(source: Path | None, tokenizer: Any, rows: int) -> None:
    """Refuse a tokenizer that cannot be written, before weights are read.

    Args:
        source: a GGUF to copy from, or nothing.
        tokenizer: the model's, of `transformers`, or nothing.
        rows: of the model's embedding.

    Raises:
        ModelError: its rules have no name known here, or the GGUF holds another tokenizer.
    """
    if source is not None:
        _check_same(source, tokenizer, rows)
    elif tokenizer is not None:
        _name_of(tokenizer)


def add_tokenizer(writer: Any, source: Path | None, tokenizer: Any, rows: int) -> None:
    """Write the tokenizer's keys.

    Args:
        writer: a `gguf.GGUFWriter`.
        source: a GGUF to copy from, or nothing.
        tokenizer: of `transformers`, written where there is no source; nothing writes no tokenizer.
        rows: of the model's embedding; ids without a token get a placeholder.
    """
    import gguf

    if source is not None:
        for field in gguf.GGUFReader(source).fields.values():
            if field.name.startswith(_PREFIX):
                kind = field.types[0]
                inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    elif tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        _write(writer, tokenizer, rows)


def _write(writer: Any, tokenizer: Any, rows: int) -> None:
    import gguf

    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {entry["id"]: entry for entry in backend["added_tokens"]}
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens, kinds = [], []
    for index in range(rows):
        if index in added:
            special = added[index]["special"]
            kinds.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL if index in by_id else gguf.TokenType.UNUSED)
        tokens.append(by_id.get(index, f"[PAD{index}]"))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_name_of(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = backend["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    for kind in ("bos", "eos", "unk", "pad"):
        if (index := getattr(tokenizer, f"{kind}_token_id")) is not None:
            getattr(writer, f"add_{kind}_token_id")(index)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _name_of(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else {}
    model = content.get("model", {})
    if model.get("type") == "BPE" and model.get("merges") and not model.get("byte_fallback"):
        first = content.get("pre_tokenizer") or {}
        parts = [_part(part) for part in first.get("pretokenizers", [first])]
        found = _NAMES.get(tuple(part for part in parts if part != "bytes"))
        if (found and "bytes" in parts) or found in ("gpt-2", "smollm"):
            return found
    raise ModelError(
        expected="a byte-level BPE with merges, cut as in GPT-2, SmolLM, Qwen2 or Llama 3, or a GGUF to copy "
        "the tokenizer from",
        got=f"the {model.get('type', 'unknown')} tokenizer of {type(tokenizer).__name__}",
        fix="Give --gguf-tokenizer FILE: any GGUF of the base model, or what llama.cpp's "
        "`convert_hf_to_gguf.py MODEL --vocab-only` writes.",
    )


def _part(part: dict[str, Any]) -> str | None:
    """A step of a pre-tokenizer in one word, or the pattern it splits by; nothing for an unknown one."""
    kind = part.get("type")
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return "gpt2" if part.get("use_regex", True) else "bytes"
    if kind == "Digits" and part.get("individual_digits"):
        return "digits"
    if kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        return part["pattern"].get("Regex")
    return None


def _check_same(source: Path, tokenizer: Any, rows: int) -> None:
    import gguf

    if not source.is_file():
        raise ModelError(expected="a GGUF file", got=f"no file at {source}", fix="Check its path.")
    try:
        field = gguf.GGUFReader(source).get_field("tokenizer.ggml.tokens")
    except Exception as error:  # a broken file makes its parser raise anything
        raise ModelError(
            expected="a GGUF file", got=f"{source}, which cannot be read ({error})", fix="Check it."
        ) from error
    there = field.contents() if field is not None else []
    ours = tokenizer.get_vocab() if tokenizer is not None else {}
    wrong = [t for t, index in ours.items() if index >= len(there) or there[index] != t]
    # llama.cpp's converter writes some added tokens as they are spelt in a text
    if len(there) != rows or len(wrong) > 0.01 * len(ours):
        raise ModelError(
            expected=f"a GGUF with the model's tokenizer, {rows} tokens as its embedding has rows",
            got=f"{source} with {len(there)}, of which {len(wrong)} differ from the model's",
            fix="Give a GGUF of the same base model.",
        )
