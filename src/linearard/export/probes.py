"""What the trained model and the exported one are both asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from linearard.model import RestorableModel

Probe = dict[str, Any]

#: Of several kinds of text, so that most directions of a layer's input occur.
_PASSAGES = (
    "The ferry left the harbour at six, an hour late, because the captain would not sail before the fog "
    "had lifted. On the upper deck two children counted the gulls, and an old man in a green coat told "
    "whoever would listen that he had crossed this strait four hundred times and never once seen the "
    "other side come out of the mist before the bell of its lighthouse could be heard.",
    "def moving_average(values, width):\n    if width < 1:\n        raise ValueError('width must be "
    "positive')\n    total, result = 0.0, []\n    for index, value in enumerate(values):\n        total += "
    "value\n        if index >= width:\n            total -= values[index - width]\n        "
    "result.append(total / min(index + 1, width))\n    return result\n",
    "Q: A farmer has 17 crates with 24 apples each and sells 9 crates. How many apples are left?\nA: He "
    "keeps 17 - 9 = 8 crates, and 8 * 24 = 192, so 192 apples are left.\nQ: A train covers 126 km in 90 "
    "minutes. What is its speed?\nA: 90 minutes are 1.5 hours, and 126 / 1.5 = 84, so 84 km an hour.",
    "Sound travels through air because each layer of molecules pushes the next. In warm air the molecules "
    "move faster, the push is handed on sooner, and the speed of sound rises by about 0.6 metres per "
    "second for every degree. In water it is more than four times as fast, and in steel some fifteen "
    "times, since stiffness matters more than density does.",
    "| city | inhabitants | founded |\n| --- | --- | --- |\n| Lindau | 25,500 | 882 |\n| Bern | 134,800 | "
    "1191 |\n| Porto | 231,800 | 868 |\nDer Zug nach Bern hat zehn Minuten Verspätung. Le train pour "
    "Porto partira du quai numéro trois.",
    "User: My tomato plants have yellow leaves at the bottom. What should I do?\nAssistant: Lower leaves "
    "often turn yellow when the plant is short of nitrogen or is watered too much. Let the top of the "
    "soil dry before you water again, and give a balanced fertiliser every second week.",
)
_LEAST_TOKENS, _TOKENS = 16, 96  # of a passage; how many between them, by what a token costs
_SPREAD = 64  # tokens that are laid over the whole target window
_KEPT = 64  # last positions of the long window that are compared
_MOST_BYTES = 2**30  # of one layer's mask or, in attention that writes them down, scores
#: Floating point operations that the long window may take on a CPU and on a GPU: some ten seconds.
_AFFORDABLE = {"cpu": 1e12, "cuda": 5e14}


def passages(restorable: RestorableModel) -> list[Probe]:
    """Short texts, at the positions that the original knows too; without a tokenizer random tokens."""
    affordable = _budget(restorable) / (2 * _parameters(restorable) * len(_PASSAGES))
    longest = int(min(max(affordable, _LEAST_TOKENS), _TOKENS, restorable.rope.native_window))
    tokenizer = restorable.tokenizer
    if tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        size = (1, min(48, longest))
        draws = [
            torch.randint(restorable.config.vocab_size, size, generator=generator) for _ in range(6)
        ]
        return [{"input_ids": ids} for ids in draws]
    found = [
        tokenizer(text, return_tensors="pt", verbose=False).input_ids[:, :longest]
        for text in _PASSAGES
    ]
    return [{"input_ids": ids} for ids in found]


def beyond(restorable: RestorableModel, short: list[Probe]) -> list[Probe]:
    """Positions up to the end of the target window.

    One probe has few tokens spread over it, which any machine can pay; the other is the text itself,
    repeated, as far as is affordable, where that is beyond the native window.

    Args:
        restorable: its device and windows count.
        short: the passages, whose tokens are taken.
    """
    ids = torch.cat([probe["input_ids"] for probe in short], dim=1)
    target = restorable.rope.target_window
    some = ids[:, :_SPREAD]
    positions = torch.linspace(0, target - 1, some.shape[1], dtype=torch.float64).long()[None]
    # The mask says that this is one text: transformers takes a jump for the border between two.
    spread = {"input_ids": some, "position_ids": positions, "attention_mask": torch.ones_like(some)}
    # MiniMax M3 counts blocks of keys by positions: there cannot be more of them than tokens.
    found: list[Probe] = [] if hasattr(restorable.config, "index_block_size") else [spread]
    length = min(target, _affordable_tokens(restorable, target))
    if length > restorable.rope.native_window:
        found.append({"input_ids": _repeated(ids, length), "keep": min(_KEPT, length)})
    return found


def _repeated(ids: Tensor, length: int) -> Tensor:
    return ids.repeat(1, -(-length // ids.shape[1]))[:, :length].contiguous()


def _affordable_tokens(restorable: RestorableModel, most: int) -> int:
    config, parameters, budget = restorable.config, _parameters(restorable), _budget(restorable)
    base = restorable.model
    base = base.get_base_model() if hasattr(base, "get_base_model") else base
    writes_scores = not getattr(base, "_supports_sdpa", False) or getattr(
        config, "attn_logit_softcapping", None
    )
    bytes_a_pair = 4 * config.num_attention_heads if writes_scores else 1
    tokens = most
    while tokens > 1:
        attention = 2 * config.num_hidden_layers * config.hidden_size * tokens
        fits = bytes_a_pair * tokens**2 <= _MOST_BYTES
        if fits and tokens * (2 * parameters + attention) <= budget:
            return tokens
        tokens //= 2
    return tokens


def _parameters(restorable: RestorableModel) -> int:
    return sum(p.numel() for p in restorable.model.parameters())


def _budget(restorable: RestorableModel) -> float:
    return _AFFORDABLE.get(restorable.device.type, _AFFORDABLE["cpu"])
