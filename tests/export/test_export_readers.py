"""Readers of an exported configuration rotate by the trained table and say the trained window.

transformers is the installed one; vLLM and SGLang are asked where they are installed. Other versions are
asked by `python -m benchmarks readers`, whose results are checked here.
"""

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks import readers

RESULTS = Path(readers.__file__).parent / "results" / "cpu" / "readers.json"
CLOSE = 2e-3  # of float32 angles of up to 8191 radians, and of a base in float32


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    return readers.write_exports(tmp_path_factory.mktemp("readers"))


def installed(reader):
    missing = importlib.util.find_spec(reader) is None
    return pytest.param(
        reader, marks=pytest.mark.skipif(missing, reason=f"{reader} is not installed")
    )


@pytest.mark.parametrize("reader", [installed(r) for r in ("transformers", "vllm", "sglang")])
def test_table_and_window_without_flags(reader, exports):
    found = readers.read(reader, exports, None)
    assert found.keys() == readers.SCALINGS.keys()
    for name, said in found.items():
        assert said["error"] < CLOSE and said["window"] == readers.TRAINED, (name, said)


def test_another_table_is_noticed(exports, tmp_path):
    export = exports["table"]
    config = json.loads((export.folder / "config.json").read_text())
    for key in ("rope_parameters", "rope_scaling"):
        config[key]["long_factor"][3] *= 1.01
        config[key]["short_factor"][3] *= 1.01
    (tmp_path / "config.json").write_text(json.dumps(config))
    spoilt = {"table": readers.Export(tmp_path, export.cos, export.sin, export.kind)}
    assert readers.read("transformers", spoilt, None)["table"]["error"] > 0.1


def test_how_each_is_written(exports):
    assert {name: export.kind for name, export in exports.items()} == {
        "linear": "llama3",
        "yarn": "yarn",
        "yarn_recommended": "longrope",
        "yarn_mscale": "longrope",
        "dynamic": "default",
        "llama3": "llama3",
        "longrope": "longrope",
        "table": "longrope",
    }


def test_the_recorded_trial_is_of_what_is_written_today(exports):
    """Plain YaRN in transformers before 4.51 is the one that was found wrong."""
    recorded = json.loads(RESULTS.read_text())
    assert recorded["written_as"] == {name: export.kind for name, export in exports.items()}
    for reader, found in recorded["readers"].items():
        old = reader in ("transformers-4.45.2", "transformers-4.50.3")
        for name, said in found.items():
            assert said["window"] == readers.TRAINED
            assert (said["error"] < CLOSE) != (old and name == "yarn"), (reader, name)
