"""Does every reader of an export rotate as it was trained, and say the window that it was trained for?

    python -m benchmarks readers --reader vllm-0.33.0=FOLDER --reader ... --out FILE.json

FOLDER holds an unpacked wheel (for older versions of transformers also tokenizers and huggingface_hub);
nothing in it is installed. Each reader's own code reads the exported configurations in a process of its
own, on a CPU: cosine and sine at a few positions, and the longest text that it allows without a flag.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.record import add_arguments, circumstances, write
from linearard.export import write_configuration
from linearard.rope import RopeViews

SCRIPTS = Path(__file__).parent / "reader_scripts"
NATIVE, TRAINED = 8192, 65536
POSITIONS = [0, 1, 17, 101, 1023, 8191]
_PAIRS, _THETA = 32, 100000.0
_DIVISORS = [8 ** ((i / (_PAIRS - 1)) ** 2) for i in range(_PAIRS)]
#: The recipe's factor is above what it is trained for.
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 8},
    "yarn": {"rope_type": "yarn", "factor": 8},
    "yarn_recommended": {"rope_type": "yarn", "factor": 10, "attention_factor": 1, "beta_fast": 4},
    "yarn_mscale": {"rope_type": "yarn", "factor": 8, "mscale": 0.7, "mscale_all_dim": 0.2},
    "dynamic": {"rope_type": "dynamic", "factor": 8},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
    },
    "longrope": {"rope_type": "longrope", "factor": 8, "long_factor": _DIVISORS},
    "table": {
        "rope_type": "table",
        "factor": 8,
        "attention_factor": 1.1,
        "inv_freq": [_THETA ** -(i / _PAIRS) / d for i, d in enumerate(_DIVISORS)],
    },
}


@dataclass(frozen=True)
class Export:
    """An exported configuration, and what is to be read from it: `[positions, rotary_dim / 2]`."""

    folder: Path
    cos: torch.Tensor
    sin: torch.Tensor
    kind: str


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks readers", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--reader", action="append", default=[], metavar="NAME-VERSION=FOLDER")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = circumstances(options.commit, "cpu") | {"readers": {}}
    with TemporaryDirectory() as folder:
        exports = write_exports(Path(folder))
        result["written_as"] = {name: export.kind for name, export in exports.items()}
        for reader in options.reader:
            name, _, place = reader.partition("=")
            found = read(name.partition("-")[0], exports, Path(place).resolve())
            result["readers"][name] = found
            print(name, json.dumps(found))
    write(options.out, result)


def write_exports(root: Path) -> dict[str, Export]:
    """One configuration a scaling, of a Llama with SmolLM2's RoPE, as an export writes it."""
    exports = {}
    for name, scaling in SCALINGS.items():
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=2 * _PAIRS,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            head_dim=2 * _PAIRS,
            max_position_embeddings=NATIVE,
            rope_theta=_THETA,
        )
        rope = RopeViews(LlamaForCausalLM(config), scaling)
        folder = root / name
        folder.mkdir()
        write_configuration(config, rope, folder, window=TRAINED)
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": TRAINED}))
        (table,) = rope.tables("stretched").values()
        angles = torch.tensor(POSITIONS, dtype=torch.float64)[:, None] * table.inv_freq.double()
        cos, sin = (f(angles) * table.attention_scaling for f in (torch.cos, torch.sin))
        written = json.loads((folder / "config.json").read_text())
        kind = written["rope_parameters"]["rope_type"]
        exports[name] = Export(folder, cos, sin, kind)
    return exports


def read(reader: str, exports: dict[str, Export], place: Path | None) -> dict[str, Any]:
    """By scaling: largest error of cosine and sine, and the window without a flag.

    Args:
        reader: transformers, vllm or sglang.
        exports: see `write_exports`.
        place: folder of its unpacked wheel; installed where none is given.
    """
    paths = [*([str(place)] if place else []), str(SCRIPTS)]
    folders = [str(export.folder) for export in exports.values()]
    command = [sys.executable, str(SCRIPTS / f"read_{reader}.py"), json.dumps(POSITIONS), *folders]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    if done.returncode:
        raise RuntimeError(f"{reader} in {place} fails:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    result = {}
    for name, export in exports.items():
        said = found[str(export.folder)]
        cos, sin = (torch.tensor(said[part], dtype=torch.float64) for part in ("cos", "sin"))
        error = max(float((cos - export.cos).abs().max()), float((sin - export.sin).abs().max()))
        result[name] = {"error": error, "window": said["window"]}
    return result
