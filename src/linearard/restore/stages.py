"""The stages of a restoration: which windows, how many of each kind, and what each is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from linearard.data.config import SELF
from linearard.restore.choice import Choice
from linearard.restore.facts import Facts, TextSupply

#: Shares of the token budget: each layer alone; long windows that find; long windows that read. The rest is
#: short text, half of it the model's own.
_ALIGNMENT, _LONG, _READ = 0.14, 0.25, 0.2
_TRIALS, _TRIAL_STEPS = 3, 8
_SHARES = [0.6, 0.7, 0.8, 0.9, 1.0]
_LOOKS = 6
_LEAST_WATCHED = 8  # short held-out windows


@dataclass(frozen=True)
class Sizes:
    """Windows of a run in tokens, and how many of each kind are read.

    Attributes:
        short, read, long: windows.
        batch, alignment_batch: short windows in a batch, of the restoration and of the alignment.
        aligned, books, own, chat, reads, longs: how many windows.
        packed: kinds of windows (`short`, `read`, `long`) for which documents are joined.
        spent: tokens of the run, trials of learning rates included.
    """

    short: int
    read: int
    long: int
    batch: int
    alignment_batch: int
    aligned: int
    books: int
    own: int
    chat: int
    reads: int
    longs: int
    packed: frozenset[str]

    @property
    def trained(self) -> int:
        """Tokens that are trained on, without the trials."""
        short = self.aligned + self.books + self.own + self.chat
        return short * self.short + self.reads * self.read + self.longs * self.long

    @property
    def tried(self) -> int:
        """Most tokens of the trials of learning rates, had nobody to go on halving."""
        aligned = self.alignment_batch if self.aligned else 0
        return _TRIALS * _TRIAL_STEPS * self.short * (self.batch + aligned)


def choose_sizes(facts: Facts, tokens: int) -> tuple[Sizes, list[Choice]]:
    """Windows and their numbers for a token budget.

    Args:
        facts: of model and text.
        tokens: of the whole run.
    """
    short = min(2048, facts.native)
    sizes = Sizes(
        short=short,
        read=max(facts.target // 2, min(facts.native, facts.target)),
        long=facts.target,
        batch=4,
        alignment_batch=2,
        aligned=1,
        books=0,
        own=0,
        chat=0,
        reads=0,
        longs=0,
        packed=frozenset(),
    )
    left = max(tokens - sizes.tried, tokens // 2)
    sizes = replace(
        sizes,
        aligned=_whole(_ALIGNMENT * left / short, sizes.alignment_batch),
        reads=max(1, round(_READ * left / sizes.read)),
        longs=max(1, round(_LONG * left / sizes.long)),
    )
    rest = left - sizes.aligned * short - sizes.reads * sizes.read - sizes.longs * sizes.long
    half = _whole(rest / 2 / short, sizes.batch)
    chat = half // 2 // sizes.batch * sizes.batch if facts.chat else 0
    sizes = replace(sizes, books=half, own=half - chat, chat=chat)
    choices = []
    if sizes.chat:
        value = f"{sizes.chat * short:,} tokens of conversations, which the model writes"
        choices.append(Choice("chat", value, "its tokenizer has a chat template"))
    if facts.supply is None:
        text = "text that the model writes itself, with passages that come back in it"
        choices.append(Choice("text", text, "no --data was given; books or documents are better"))
        sizes = replace(sizes, packed=frozenset({"short", "read", "long"}))
    else:
        sizes, told = _by_supply(sizes, facts.supply)
        choices += told
    value = (
        f"{sizes.aligned + sizes.books + sizes.own + sizes.chat:,} of {short:,}, {sizes.reads} of "
        f"{sizes.read:,} and {sizes.longs} of {sizes.long:,} tokens"
    )
    reason = f"{sizes.trained + sizes.tried:,} tokens, at most {sizes.tried:,} of them for trials"
    return sizes, [*choices, Choice("windows", value, reason)]


def _by_supply(sizes: Sizes, supply: TextSupply) -> tuple[Sizes, list[Choice]]:
    """Join documents where they are too short; let the model write what the text does not have."""
    packed, told = set(), []
    for kind, window, wanted in (
        ("short", sizes.short, sizes.books + sizes.aligned),
        ("read", sizes.read, sizes.reads),
        ("long", sizes.long, sizes.longs),
    ):
        if supply.windows(window) < 1.2 * wanted:
            packed.add(kind)
    if packed:
        reason = "too few documents are that long"
        if supply.lengths is None:
            reason = (
                "how long the documents of a hub data set are is not known before they are read"
            )
        kinds = ", ".join(k for k in ("short", "read", "long") if k in packed)
        told.append(Choice("joined documents", f"in {kinds} windows", reason))
    room = 0.95 * supply.tokens
    changed = replace(
        sizes,
        packed=frozenset(packed),
        aligned=_at_most(sizes.aligned, room / sizes.short, sizes.alignment_batch),
        books=_at_most(sizes.books, room / sizes.short, sizes.batch),
        reads=int(min(sizes.reads, room / sizes.read)),
        longs=int(min(sizes.longs, room / sizes.long)),
    )
    missing = sizes.trained - changed.trained
    if missing:
        more = _whole(missing / sizes.short, sizes.batch)
        changed = replace(changed, own=changed.own + more)
        reason = f"--data has about {supply.tokens:,.0f} tokens, too few for all windows"
        told.append(Choice("more text of the model's own", f"{missing:,} tokens", reason))
    return changed, told


def build_stages(
    facts: Facts, sizes: Sizes, optimizer: dict[str, Any], alignment_rate: float
) -> dict[str, Any]:
    """The section `stages` of a recipe.

    Args:
        facts: of model and text.
        sizes: its windows.
        optimizer: fields of the restoration stage.
        alignment_rate: learning rate of the alignment stage.
    """
    watched = {"window": sizes.short, "sequences": _LEAST_WATCHED}
    trials = {"rate_trials": _TRIALS, "rate_steps": _TRIAL_STEPS}
    common = {"warmup_steps": 8, "lr_floor": 0.1, "save_total_limit": 1, "logging_steps": 10}
    stages: dict[str, Any] = {}
    if sizes.aligned:
        stages["alignment"] = {
            "window": sizes.short,
            "sequences": sizes.aligned,
            "per_device_train_batch_size": sizes.alignment_batch,
            "learning_rate": alignment_rate,
            **common,
            "save_steps": 1000,
            "data": _data(sizes, "short"),
            "objective": {"relations": {"qk": 1.0}, "inputs": "teacher"},
            "held_out": {**watched, **trials},
        }
    parts = _parts(facts, sizes)
    steps = sum(part["sequences"] // part["batch_size"] for part in parts.values())
    stages["restoration"] = {
        **optimizer,
        **common,
        "save_steps": max(1, steps // 3),
        "held_out": {
            **watched,
            **trials,
            "long_window": sizes.long,
            "every": max(1, steps // _LOOKS),
            "shares": _SHARES,
        },
        "parts": parts,
    }
    return stages


def _parts(facts: Facts, sizes: Sizes) -> dict[str, Any]:
    near = {
        "relations": {"qk": 1.0, "v": 1.0},
        "logit_weight": 1.0,
        "logit_positions": None,
        "hidden_weight": 1.0,
        "hidden_layers": [-1],
    }
    far = {"relations": {}, "logit_weight": 1.0, "logit_positions": None}
    start = {} if facts.self_start is None else {"self_start": facts.self_start}
    parts = {
        "short": {
            "window": sizes.short,
            "sequences": sizes.books,
            "batch_size": sizes.batch,
            "data": {**_data(sizes, "short"), "recall": 0.15},
            "objective": {**near, "lm_weight": 0.3, "recall_weight": 0.3},
        },
        "long": {
            "window": sizes.long,
            "sequences": sizes.longs,
            "batch_size": 1,
            "data": {**_data(sizes, "long"), "recall": 0.2},
            "objective": {**far, "teacher_window": _even(facts.native // 2), "recall_weight": 3.0},
        },
        "own": {
            "window": sizes.short,
            "sequences": sizes.own,
            "batch_size": sizes.batch,
            "data": {"train": SELF, **start},
            "objective": near,
        },
        "chat": {
            "window": sizes.short,
            "sequences": sizes.chat,
            "batch_size": sizes.batch,
            "data": {"train": SELF, "self_chat": True, "self_start": None},
            "objective": near,
        },
        "read": {
            "window": sizes.read,
            "sequences": sizes.reads,
            "batch_size": 1,
            "data": _data(sizes, "read"),
            "objective": {**far, "teacher_window": _even(facts.native), "lm_weight": 0.4},
        },
    }
    return {name: part for name, part in parts.items() if part["sequences"] >= part["batch_size"]}


def _data(sizes: Sizes, kind: str) -> dict[str, Any]:
    return {"pack": True} if kind in sizes.packed else {}


def _whole(count: float, batch: int) -> int:
    """A number of windows that fills batches, at least one."""
    return max(1, int(count // batch)) * batch


def _at_most(wanted: int, room: float, batch: int) -> int:
    return min(wanted, int(room // batch) * batch)


def _even(tokens: int) -> int:
    return tokens // 2 * 2
