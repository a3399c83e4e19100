"""What is hidden in a haystack and asked for: the kinds of puzzles of the retrieval metric.

The kinds follow the descriptions in "RULER: What's the Real Context Size of Your Long-Context
Language Models?" (arXiv 2404.06654); the sentences are this project's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

NEEDLES = 4  # of a puzzle that hides several
HOPS = 3  # variables in a chain, each set from the one before
# fmt: off
OBJECTS = (
    "lantern", "anchor", "violin", "saddle", "kettle", "compass", "ladder", "mirror", "hammer",
    "blanket", "carriage", "telescope", "basket", "candle", "drum", "envelope", "fountain",
    "glove", "helmet", "inkwell", "jacket", "kite", "lock", "medal", "needle", "orchard",
    "parcel", "quilt", "ribbon", "statue", "trumpet", "umbrella", "vase", "wagon", "barrel",
    "bell", "bridge", "button", "cabinet", "chimney", "clock", "cradle", "curtain", "door",
    "feather", "fiddle", "gate", "harness",
)
WORDS = (
    "maple", "thunder", "copper", "winter", "pepper", "silver", "falcon", "granite", "harbor",
    "ivory", "juniper", "kingdom", "lemon", "marble", "nectar", "olive", "pebble", "quartz",
    "raven", "saffron", "timber", "velvet", "walnut", "amber", "birch", "cedar", "dragon",
    "ember", "frost", "ginger", "hazel", "island", "jasper", "meadow", "orange", "pearl",
    "river", "salt", "tiger", "valley",
)
# fmt: on


@dataclass(frozen=True)
class Puzzle:
    """One thing to find.

    Attributes:
        introduction: what a reader is told before the text.
        needles: (depth, sentence), in the order in which equal depths stand in the text.
        question: what stands behind the text.
        answer: what must follow the question.
    """

    introduction: str
    needles: list[tuple[float, str]]
    question: str
    answer: str


def _single(chance: Random, depth: float) -> Puzzle:
    """One needle with a number."""
    return _one_of(chance, depth, "code", 1, _number)


def _word(chance: Random, depth: float) -> Puzzle:
    """One needle with a word."""
    return _one_of(chance, depth, "password", 1, lambda chance: chance.choice(WORDS))


def _multi_key(chance: Random, depth: float) -> Puzzle:
    """Several needles of one form; the one at `depth` is asked for, the others stand anywhere."""
    return _one_of(chance, depth, "code", NEEDLES, _number)


def _multi_value(chance: Random, depth: float) -> Puzzle:
    """Several codes of one object, from `depth` on; all are asked for."""
    owner = chance.choice(OBJECTS)
    values = [_number(chance) for _ in range(NEEDLES)]
    sentences = [_sentence("code", owner, value) for value in values]
    question = f"What are all the codes of the {owner}, in the order of the text? They are"
    return Puzzle(_introduction("code"), _spread(depth, sentences), question, ", ".join(values))


def _multi_query(chance: Random, depth: float) -> Puzzle:
    """The codes of several objects, from `depth` on; all are asked for, in another order."""
    codes = {owner: _number(chance) for owner in chance.sample(OBJECTS, NEEDLES)}
    sentences = [_sentence("code", owner, value) for owner, value in codes.items()]
    asked = chance.sample(list(codes), NEEDLES)
    listed = ", ".join(f"the {owner}" for owner in asked)
    question = f"What are the codes of {listed}, in this order? They are"
    answer = ", ".join(codes[owner] for owner in asked)
    return Puzzle(_introduction("code"), _spread(depth, sentences), question, answer)


def _variables(chance: Random, depth: float) -> Puzzle:
    """Two chains of variables, each set from the one before; what the last of one chain holds."""
    letters = [chr(code) for code in range(ord("A"), ord("Z") + 1)]
    names: list[str] = []
    while len(names) < 2 * HOPS:
        name = "".join(chance.sample(letters, 3))
        names += [] if name in names else [name]
    asked, other, number = names[:HOPS], names[HOPS:], _number(chance)
    needles = _spread(depth, _assignments(asked, number))
    depths = sorted(chance.random() for _ in other)
    needles += zip(depths, _assignments(other, _another(chance, number)), strict=True)
    return Puzzle(
        "The text below sets some variables, from numbers or from each other. Keep track of them.",
        needles,
        f"Which number does variable {asked[-1]} have at the end? The number is",
        number,
    )


#: Name of a kind, as recipes have it, to what makes a puzzle with its needle at a depth.
PUZZLES: dict[str, Callable[[Random, float], Puzzle]] = {
    "single": _single,
    "word": _word,
    "multikey": _multi_key,
    "multivalue": _multi_value,
    "multiquery": _multi_query,
    "variables": _variables,
}


def _one_of(
    chance: Random, depth: float, noun: str, count: int, value: Callable[[Random], str]
) -> Puzzle:
    owner, *others = chance.sample(OBJECTS, count)
    answer = value(chance)
    needles = [(depth, _sentence(noun, owner, answer))]
    for other in others:
        needles.append((chance.random(), _sentence(noun, other, _another(chance, answer))))
    question = f"What is the {noun} of the {owner}? The {noun} of the {owner} is"
    return Puzzle(_introduction(noun), needles, question, answer)


def _introduction(noun: str) -> str:
    return f"The text below gives away a {noun} here and there. Remember every {noun} in it."


def _sentence(noun: str, owner: str, value: str) -> str:
    return f"The {noun} of the {owner} is {value}."


def _assignments(names: list[str], number: str) -> list[str]:
    sources = [number, *(f"that of {name}" for name in names)]
    return [
        f"Variable {name} is set to {source}." for name, source in zip(names, sources, strict=False)
    ]


def _spread(depth: float, sentences: list[str]) -> list[tuple[float, str]]:
    """The first at `depth`, the others at equal distances from there to the end."""
    step = (1 - depth) / len(sentences)
    return [(depth + index * step, sentence) for index, sentence in enumerate(sentences)]


def _number(chance: Random) -> str:
    return str(chance.randint(100_000, 999_999))


def _another(chance: Random, number: str) -> str:
    other = _number(chance)
    return other if other != number else _another(chance, number)
