"""Random calls of the relation KL, in a fixed number of classes.

Triton compiles a kernel for every dtype, head_dim, layout and set of options, and again for integers
that are 1 or divisible by 16. A class fixes all of these; what varies within a class does not matter
to the compiler: tokens of one kind, window, documents, padding, batch, weights, temperature, scale.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from relation_oracle import Case

#: What a class walks through; the lengths have no common factor, so that combinations differ.
_DTYPES = ("bfloat16", "float16", "float32")
_HEAD_DIMS = (64, 16, 128, 40, 80, 32, 24, 256, 96, 120, 48, 72, 192)
_HEADS = ((3, None), (4, 2), (2, None), (6, 1), (5, None), (3, 3), (9, 3), (1, None))
_TOKENS = ("odd", "tiled", "odd", "odd", "even")


@dataclass(frozen=True)
class CompileClass:
    """What the compiler sees; ``kv_heads`` None is a self-relation."""

    index: int
    dtype: str
    head_dim: int
    heads: int
    kv_heads: int | None
    causal: bool
    banded: bool
    padded: bool
    strided: bool
    tokens: str  # odd, even (2 more than a multiple of 4), tiled (a multiple of 128), one

    def __str__(self) -> str:
        kind = "self" if self.kv_heads is None else f"{self.heads}over{self.kv_heads}"
        flags = ["band"] * self.banded + ["pad"] * self.padded + ["strided"] * self.strided
        shape = ["causal" if self.causal else "full", self.dtype, f"d{self.head_dim}"]
        return "-".join([str(self.index), kind, *shape, self.tokens, *flags])


def compile_classes(count: int = 40) -> list[CompileClass]:
    """``count`` classes, the same every time; two of single tokens among them."""
    classes = []
    for i in range(count):
        heads, kv_heads = _HEADS[(i // 3) % len(_HEADS)]
        classes.append(
            CompileClass(
                index=i,
                dtype=_DTYPES[i % 3],
                head_dim=_HEAD_DIMS[i % len(_HEAD_DIMS)],
                heads=heads,
                kv_heads=kv_heads,
                causal=i % 4 != 3,
                banded=i % 7 in (1, 2, 4, 5),
                padded=i % 5 in (2, 3),
                strided=i % 11 in (4, 9),
                tokens="one" if i in (13, 27) else _TOKENS[(i // 2) % len(_TOKENS)],
            )
        )
    return classes


def draw_case(kind: CompileClass, rng: random.Random, largest: int = 384) -> Case:
    """A case of the class with at most ``largest`` tokens (128 where tokens are tiled)."""
    tokens = _tokens(kind.tokens, rng, largest)
    window = documents = None
    if kind.banded:
        packed = rng.random()
        if packed < 0.6:
            window = rng.choice([1, 2, rng.randint(1, tokens), rng.randint(1, tokens), 32, 64])
        if packed > 0.4 or window >= tokens:  # a window that cuts nothing is another class
            documents = draw_documents(tokens, rng)
    return Case(
        tokens=tokens,
        head_dim=kind.head_dim,
        heads=kind.heads,
        kv_heads=kind.kv_heads,
        batch=1 if documents is not None else rng.choice([1, 2, 3]),
        causal=kind.causal,
        window=window,
        documents=documents,
        padding=rng.choice(["left", "right", "holes", "holes", "all"]) if kind.padded else "none",
        weights=rng.choice([None, None, (True, True, True), (True, False, True), (False,) * 3]),
        temperature=rng.choice([1.0, 1.0, 0.5, 3.0]),
        amplitude=rng.choice([1.0, 1.0, 1.0, 0.05, 4.0, 40.0 * (64 / kind.head_dim) ** 0.25]),
        strided=kind.strided,
        seed=rng.randrange(1 << 30),
    )


def _tokens(kind: str, rng: random.Random, largest: int) -> int:
    if kind == "one":
        return 1
    if kind == "tiled":
        return 128 * rng.randint(1, max(1, largest // 128))
    border = rng.choice([b for b in (16, 32, 64, 96, 128, 192, 256, 320, 384) if b <= largest])
    near = border + rng.choice([-3, -2, -1, 0, 1, 2, 3])
    tokens = min(largest, max(3, rng.choice([near, rng.randint(2, largest)])))
    if kind == "odd":
        return tokens - 1 + tokens % 2
    return tokens // 4 * 4 + 2


def draw_documents(tokens: int, rng: random.Random) -> tuple[int, ...]:
    """Lengths that add up to ``tokens``, empty ones among them; now and then one holds it all."""
    cuts = sorted(rng.randint(0, tokens) for _ in range(rng.choice([0, 1, 2, 5, 12])))
    if cuts and rng.random() < 0.5:
        cuts = sorted([*cuts, cuts[0]])
    return tuple(b - a for a, b in zip([0, *cuts], [*cuts, tokens], strict=True))
