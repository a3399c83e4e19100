"""Count what the order costs in which the Hopper backward's blocks start; no GPU is needed.

    python -m benchmarks launches benchmarks/results/h200/relation_kl.json

A multiprocessor works on one block at a time and takes the next as soon as it is free. A block begins and
ends in three steps and takes one for each of its tiles, from the diagonal's on; in order it adds to a tile
when the block before, of its chain where there are two, has added and handed it over. Printed for each shape
of the file, in steps:

    even        the work shared out evenly
    any order   longest first, as `tiles.h` has it
    ascending   in order, head after head, as it was until 2026-11-28
    halves      in order, as `backward.cu` has it (Turn)
    us, …       measured microseconds of the backward over these steps: one number for all lengths where the
                count is right, for a file measured with the kernels that started so
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Iterator
from pathlib import Path

from tabulate import tabulate

from linearard.ops.relation_kl.hopper import kernels

MULTIPROCESSORS = 132
BEGIN, END = 2.0, 1.0  # steps
#: Steps, by head_dim: some 2.7 us, of steps of so many.
HANDING_OVER = {64: 2.7 / 2.3, 128: 2.7 / 3.9}


def longest_first(heads: int, blocks: int, together: int) -> Iterator[tuple[int, int]]:
    """Head and block of each launched block: sets of heads, of them those with most tiles first."""
    for first in range(0, heads, together):
        for block in reversed(range(blocks)):
            for head in range(first, min(heads, first + together)):
                yield head, block


def ascending(heads: int, blocks: int) -> Iterator[tuple[int, int]]:
    """Head after head, each from its first block to its last."""
    return ((head, block) for head in range(heads) for block in range(blocks))


def halves(heads: int, blocks: int) -> Iterator[tuple[int, int]]:
    """Of every head the second half, then the second half of what is left, ascending within each."""
    high = blocks
    while high:
        low = high // 2
        for head in range(heads):
            for block in range(low, high):
                yield head, block
        high = low


def steps(launch: Iterator[tuple[int, int]], chains: int = 0, handing_over: float = 0.0) -> float:
    """When the last block ends; adds to a tile come in so many chains in the launch's order, or freely."""
    free = [0.0] * MULTIPROCESSORS
    added: dict[tuple[int, int, int], float] = {}
    for head, block in launch:
        now = free[0] + BEGIN
        for tile in range(block, -1, -1):
            now += 1
            if chains:
                before = head, tile, block % chains
                now = max(now, added.get(before, 0.0) + handing_over)
                added[before] = now
        heapq.heapreplace(free, now + END)
    return max(free)


def even(heads: int, blocks: int) -> float:
    """Steps of all blocks over the multiprocessors."""
    return heads * sum(BEGIN + END + block + 1 for block in range(blocks)) / MULTIPROCESSORS


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks launches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="what `python -m benchmarks relation_kl` wrote")
    rows = []
    for name, shape in json.loads(parser.parse_args(arguments).file.read_text())["shapes"].items():
        heads, tokens, head_dim = (
            shape["batch"] * shape["heads"],
            shape["tokens"],
            shape["head_dim"],
        )
        blocks = kernels.row_blocks("backward", tokens)
        together = kernels.heads_together(heads, tokens, head_dim * 8)
        forward = shape["forward"]["p50"]
        free = 1000 * (shape["any_order_ms"] - forward)
        strict = 1000 * (shape["ms"] - forward)
        counts = [
            steps(longest_first(heads, blocks, together)),
            steps(ascending(heads, blocks), 1, HANDING_OVER[head_dim]),
            steps(halves(heads, blocks), kernels.chains_of(head_dim), HANDING_OVER[head_dim]),
        ]
        measured = [us / count for us, count in zip((free, strict, strict), counts, strict=True)]
        rows.append([name, even(heads, blocks), *counts, *measured])
    columns = ["even", "any order", "ascending", "halves"]
    headers = ["shape", *columns, *(f"us, {column}" for column in columns[1:])]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=[""] + [".0f"] * 4 + [".2f"] * 3))
