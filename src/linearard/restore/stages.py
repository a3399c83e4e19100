"""The stages of a restoration: which windows, how many of each kind, and what each is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from linearard.data.config import SELF
from linearard.restore.choice import Choice
from linearard.restore.facts import Facts, TextSupply
from linearard.train.windows import interleaved

#: Shares of the token budget: each layer alone, long windows that find, long windows that read. The rest is
#: short text, half of it the model's own.
_ALIGNMENT, _LONG, _READ = 0.14, 0.25, 0.2
_TRIAL_STEPS = 8
#: Of what a stage has changed, to choose from: a stage that helps little may leave little.
_SHARES = [0.2, 0.4, 0.6, 0.8, 0.9, 1.0]
_FEW_SHARES = [0.1, 0.25, 0.5, 1.0]
#: Weight of the KL to the original's output on short text. Muon's steps are as long whatever the gradient is,
#: and KL is small beside what long windows want: at 1 SmolLM2-135M ends at .0221, at 4 at .0139, and long
#: windows are read and searched nearly as well (docs/LOG.md, 2026-12-01).
_NEAR_WEIGHT = 6.0
#: Windows of the model's own text: questions and answers of a benchmark or a chat are as short.
_OWN, _CHAT = 512, 1024
#: Nats. Rates and weights were found on models which stretching moves about as far; see `held_out`.
_REFERENCE_KL = 0.1
_LOOKS = 6
_LEAST_WATCHED = 8  # short held-out windows
MORE_OWN_TEXT = "more text of the model's own"  # a choice where the text is too short
WINDOWS = "windows"  # the choice that names them all
_LONGEST_WATCHED = 65_536  # tokens: a look at more takes as long as a step


@dataclass(frozen=True)
class Sizes:
    """Windows of a run in tokens, and how many of each kind are read.

    Attributes:
        short, own, chat, read, long: windows.
        batch: tokens in a batch of short windows of the restoration; an alignment's batch has half.
        aligned, books, owns, chats, reads, longs: how many windows.
        packed: kinds of windows (`short`, `read`, `long`) for which documents are joined.
        trials: of learning rates, before a stage.
    """

    short: int
    own: int
    chat: int
    read: int
    long: int
    batch: int
    aligned: int = 0
    books: int = 0
    owns: int = 0
    chats: int = 0
    reads: int = 0
    longs: int = 0
    packed: frozenset[str] = frozenset()
    trials: int = 3

    @property
    def trained(self) -> int:
        """Tokens that are trained on, without the trials."""
        short = (self.aligned + self.books) * self.short
        own = self.owns * self.own + self.chats * self.chat
        return short + own + self.reads * self.read + self.longs * self.long

    @property
    def tried(self) -> int:
        """Tokens of the trials of learning rates, unless all of them make the model worse."""
        every = {
            "short": self.books // self.windows(self.short),
            "long": self.longs,
            "own": self.owns // self.windows(self.own),
            "chat": self.chats // self.windows(self.chat),
            "read": self.reads,
        }
        far = {"long": self.long, "read": self.read}
        first = interleaved({part: count for part, count in every.items() if count})[:_TRIAL_STEPS]
        restored = sum(far.get(part, self.batch) for part, _ in first)
        return self.trials * (restored + _TRIAL_STEPS * self.batch // 2)

    def windows(self, window: int) -> int:
        """Windows of this many tokens in a batch of short windows."""
        return max(1, self.batch // window)


def choose_sizes(facts: Facts, tokens: int) -> tuple[Sizes, list[Choice]]:
    """Windows and their numbers for a token budget.

    Args:
        facts: of model and text.
        tokens: of the whole run.
    """
    return _on_cpu(facts, tokens) if facts.on_cpu else _on_gpu(facts, tokens)


def _on_cpu(facts: Facts, tokens: int) -> tuple[Sizes, list[Choice]]:
    """Minutes on a few cores: each layer alone, which needs no pass of the whole student."""
    short = min(2048, facts.native)
    sizes = Sizes(
        short=short, own=short, chat=short, read=short, long=facts.target, batch=2 * short, trials=0
    )
    sizes = replace(sizes, aligned=_whole(tokens / short, 2))
    packed: frozenset[str] = frozenset()
    if facts.supply is not None and facts.supply.windows(short) < 1.2 * sizes.aligned:
        packed = frozenset({"short"})
    value = f"{sizes.aligned} of {short:,} tokens, each layer alone"
    reason = "what a CPU reads in minutes; a GPU goes on with long windows"
    return replace(sizes, packed=packed), [Choice(WINDOWS, value, reason)]


def _on_gpu(facts: Facts, tokens: int) -> tuple[Sizes, list[Choice]]:
    short = min(2048, facts.native)
    sizes = Sizes(
        short=short,
        own=min(_OWN, short),
        chat=min(_CHAT, short),
        read=max(facts.target // 2, min(facts.native, facts.target)),
        long=facts.target,
        batch=4 * short,
    )
    for _ in range(2):  # what is tried depends on what is trained
        sizes = _shared_out(sizes, max(tokens - sizes.tried, tokens // 2), facts.chat)
    choices = []
    if sizes.chats:
        value = f"{sizes.chats * sizes.chat:,} tokens of conversations, which the model writes"
        choices.append(Choice("chat", value, "its tokenizer has a chat template"))
    if facts.supply is None:
        text = "text that the model writes itself, with passages that come back in it"
        choices.append(Choice("text", text, "no --data was given; books or documents are better"))
        sizes = replace(sizes, packed=frozenset({"short", "read", "long"}))
    else:
        sizes, told = _by_supply(sizes, facts.supply)
        choices += told
    talks = f"{sizes.chats:,} of {sizes.chat:,} (conversations), " if sizes.chats else ""
    value = (
        f"{sizes.aligned + sizes.books:,} of {short:,}, {sizes.owns:,} of {sizes.own:,}, {talks}"
        f"{sizes.reads} of {sizes.read:,} and {sizes.longs} of {sizes.long:,} tokens"
    )
    reason = f"{sizes.trained + sizes.tried:,} tokens, at most {sizes.tried:,} of them for trials"
    return sizes, [*choices, Choice(WINDOWS, value, reason)]


def _shared_out(sizes: Sizes, tokens: int, chat: bool) -> Sizes:
    """So many windows of each kind that all together hold these tokens."""
    short = sizes.short
    sizes = replace(
        sizes,
        aligned=_whole(_ALIGNMENT * tokens / short, 2),
        reads=max(1, round(_READ * tokens / sizes.read)),
        longs=max(1, round(_LONG * tokens / sizes.long)),
        books=0,
        owns=0,
        chats=0,
    )
    half = (tokens - sizes.trained) / 2
    talked = half / 2 if chat else 0.0
    return replace(
        sizes,
        books=_whole(half / short, sizes.windows(short)),
        owns=_whole((half - talked) / sizes.own, sizes.windows(sizes.own)),
        chats=_whole(talked / sizes.chat, sizes.windows(sizes.chat)) if talked else 0,
    )


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
        kinds = {"short": sizes.short, "read": sizes.read, "long": sizes.long}
        shown = " and ".join(f"{kinds[kind]:,}" for kind in kinds if kind in packed)
        told.append(Choice("joined documents", f"in windows of {shown} tokens", reason))
    room = 0.95 * supply.tokens
    changed = replace(
        sizes,
        packed=frozenset(packed),
        aligned=_at_most(sizes.aligned, room / sizes.short, 2),
        books=_at_most(sizes.books, room / sizes.short, sizes.windows(sizes.short)),
        reads=int(min(sizes.reads, room / sizes.read)),
        longs=int(min(sizes.longs, room / sizes.long)),
    )
    missing = sizes.trained - changed.trained
    if missing:
        more = _whole(missing / sizes.own, sizes.windows(sizes.own))
        changed = replace(changed, owns=changed.owns + more)
        reason = f"--data has about {supply.tokens:,.0f} tokens, too few for all windows"
        told.append(Choice(MORE_OWN_TEXT, f"{missing:,} tokens", reason))
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
    watched = {
        "window": sizes.short,
        "sequences": 2 if facts.on_cpu else _LEAST_WATCHED,
        "reference_kl": _REFERENCE_KL,
    }
    trials = {"rate_trials": sizes.trials, "rate_steps": _TRIAL_STEPS}
    warm = 2 if facts.on_cpu else 8
    common = {"warmup_steps": warm, "lr_floor": 0.1, "save_total_limit": 1, "logging_steps": 10}
    alone = {
        "window": sizes.short,
        "per_device_train_batch_size": min(2, sizes.windows(sizes.short)),
        **common,
        "save_steps": 1000,
        "data": _data(sizes, "short"),
    }
    stages: dict[str, Any] = {}
    if sizes.aligned:
        stages["alignment"] = {
            **alone,
            "sequences": sizes.aligned,
            "learning_rate": alignment_rate,
            "objective": {"relations": {"qk": 1.0}, "inputs": "teacher"},
            "held_out": {**watched, **trials, "shares": _FEW_SHARES},
        }
    parts = _parts(facts, sizes)
    if not parts:
        return stages
    steps = sum(part["sequences"] // part["batch_size"] for part in parts.values())
    stages["restoration"] = {
        **optimizer,
        **common,
        "save_steps": max(1, steps // 3),
        "held_out": {
            **watched,
            **trials,
            "long_window": min(sizes.long, _LONGEST_WATCHED),
            "every": max(1, steps // _LOOKS),
            "shares": _SHARES,
        },
        "parts": parts,
    }
    return stages


def _parts(facts: Facts, sizes: Sizes) -> dict[str, Any]:
    near = {
        "relations": {"qk": 1.0, "v": 1.0},
        "logit_weight": _NEAR_WEIGHT,
        "logit_positions": None,
        "hidden_weight": 1.0,
        "hidden_layers": [-1],
    }
    far = {"relations": {}, "logit_weight": 1.0, "logit_positions": None}
    half = _even(min(facts.native, sizes.long) // 2)
    start = {} if facts.self_start is None else {"self_start": facts.self_start}
    parts: dict[str, dict[str, Any]] = {
        "short": {
            "window": sizes.short,
            "sequences": sizes.books,
            "batch_size": sizes.windows(sizes.short),
            "data": {**_data(sizes, "short"), "repeated_passages": 0.15},
            "objective": {**near, "repeated_weight": 0.3},
        },
        "long": {
            "window": sizes.long,
            "sequences": sizes.longs,
            "batch_size": 1,
            "data": {**_data(sizes, "long"), "repeated_passages": 0.2},
            "objective": {**far, "teacher_window": half, "repeated_weight": 3.0},
        },
        "own": {
            "window": sizes.own,
            "sequences": sizes.owns,
            "batch_size": sizes.windows(sizes.own),
            "data": {"train": SELF, **start},
            "objective": near,
        },
        "chat": {
            "window": sizes.chat,
            "sequences": sizes.chats,
            "batch_size": sizes.windows(sizes.chat),
            "data": {"train": SELF, "self_chat": True, "self_start": None},
            "objective": near,
        },
        "read": {
            "window": sizes.read,
            "sequences": sizes.reads,
            "batch_size": 1,
            "data": {**_data(sizes, "read"), "repeated_passages": 0.1},
            "objective": {
                **far,
                "teacher_window": _even(facts.native),
                "lm_weight": 0.4,
                "repeated_weight": 1.0,
            },
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
