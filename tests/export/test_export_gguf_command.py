"""`linearard export --format gguf` of a small run, by the command line alone."""

import json

import gguf
import pytest
from byte_pairs import ROWS, byte_pairs

import small_run
import tiny
from linearard.cli.main import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    base = tiny.save_tiny_base(folder / "base", vocab_size=ROWS)
    byte_pairs().save_pretrained(base)
    return small_run.train(small_run.one_stage(folder, base, sequences=4))


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_the_command_writes_a_file_that_says_its_table_and_window(kind, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--format", "gguf", "--gguf-type", kind]) == 0
    about = json.loads((out / "linearard_export.json").read_text())
    assert sorted(about["files"]) == sorted(["Modelfile", "README.md", about["file"]])
    reader = gguf.GGUFReader(out / about["file"])
    assert reader.get_field("llama.context_length").contents() == 4 * tiny.WINDOW
    assert about["file"] == f"base-{4 * tiny.WINDOW}-{kind}.gguf"
    said = capsys.readouterr().err
    assert f"exported to {out / about['file']}" in said and "merged in float32 (nearest)" in said
    card = (out / "README.md").read_text()
    assert f"-m {about['file']} -c {4 * tiny.WINDOW}" in card
    assert main(["push", str(out), "--to", "me/tiny", "--dry-run"]) == 0


def test_bad_types_and_tokenizers_are_refused_before_weights_are_read(run, tmp_path, monkeypatch):
    monkeypatch.setattr("linearard.model.restorable.load_model", None)
    out = str(tmp_path / "out")
    for options in (["--gguf-type", "q4_k"], ["--gguf-tokenizer", str(tmp_path / "none.gguf")]):
        assert main(["export", str(run), out, "--format", "gguf", *options]) == 2
    assert not (tmp_path / "out").exists()
