"""Damaged and random files: refused in words, or read; never a traceback."""

import json
import shutil

import pytest

hypothesis = pytest.importorskip("hypothesis")
import torch  # noqa: E402
from fuzzing import damaged, json_values, refused_or_done, tries  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import tiny  # noqa: E402
from linearard.data.files import read_file  # noqa: E402
from linearard.data.rows import documents  # noqa: E402
from linearard.evaluation.task_files import read_tasks  # noqa: E402
from linearard.model import (  # noqa: E402
    METADATA_FILE,
    ModelConfig,
    load_config,
    load_model,
    load_tokenizer,
    load_weights,
    save_checkpoint,
)
from linearard.train import open_checkpoint, share_not_kept  # noqa: E402

RECIPE = {
    "model": {"name": "x", "dtype": "float32", "device": "cpu"},
    "rope": {"rope_type": "linear", "factor": 4.0},
    "adapter": {"r": 4, "alpha": 8.0, "dropout": 0.0},
    "data": {"train": "text"},
    "stages": {"one": {"window": 48, "sequences": 4}},
}
TASK = b"""\
{"context": "the ship", "choices": [" sea", " wind"], "answer": 1}
{"context": "the sail", "choices": [" star", " night"], "answer": 0}
"""
TEXT = b'{"text": "the ship came"}\n{"text": "the wind \\u00e9"}\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def restorable():
    return tiny.tiny_restorable()


@pytest.fixture(scope="module")
def checkpoint(restorable, folder):
    save_checkpoint(restorable, folder / "checkpoint", stage="one", recipe=RECIPE)
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def base(folder):
    return tiny.save_tiny_base(folder / "base")


@given(st.one_of(damaged(TASK), st.binary(max_size=40)))
@tries(150)
def test_task_files(folder, data):
    place = folder / "tasks"
    place.mkdir(exist_ok=True)
    (place / "task.jsonl").write_bytes(data)
    refused_or_done(read_tasks, place)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["context", "target", "choices", "answer", "context_options"]),
            st.one_of(json_values, st.lists(st.text(max_size=3), min_size=2, max_size=3)),
        )
    )
)
@tries(150)
def test_task_records(folder, records):
    place = folder / "tasks"
    place.mkdir(exist_ok=True)
    (place / "task.jsonl").write_text("\n".join(map(json.dumps, records)))
    for task in (refused_or_done(read_tasks, place) or {}).values():
        for record in task:
            "".join(text for pair in record.prompts for text in pair).encode()


@given(st.one_of(damaged(TEXT), st.binary(max_size=40)), st.sampled_from(["jsonl", "txt"]))
@tries(150)
def test_text_files(folder, data, kind):
    path = folder / f"text.{kind}"
    path.write_bytes(data)
    refused_or_done(lambda: list(documents(read_file(path, "text"), "text")))


def opened(folder):
    """A checkpoint's metadata as `evaluate` and `export` read it."""
    place, recipe = open_checkpoint(folder)
    return share_not_kept(place, recipe)


@given(st.data())
@tries(150)
def test_metadata_with_damage(checkpoint, folder, data):
    whole = (checkpoint / METADATA_FILE).read_bytes()
    copy = folder / "damaged"
    copy.mkdir(exist_ok=True)
    (copy / METADATA_FILE).write_bytes(data.draw(damaged(whole)))
    refused_or_done(opened, copy)


@given(st.data())
@tries(150)
def test_metadata_with_other_values(checkpoint, folder, restorable, data):
    metadata = json.loads((checkpoint / METADATA_FILE).read_text())
    node = metadata
    while True:
        key = data.draw(st.sampled_from(sorted(node)))
        if isinstance(node[key], dict) and node[key] and data.draw(st.booleans()):
            node = node[key]
            continue
        node[key] = data.draw(json_values)
        break
    copy = folder / "other"
    shutil.copytree(checkpoint, copy, dirs_exist_ok=True)
    (copy / METADATA_FILE).write_text(json.dumps(metadata))
    refused_or_done(opened, copy)
    refused_or_done(load_weights, restorable, copy)


@given(st.data())
@tries(100)
def test_weights_of_an_adapter(checkpoint, folder, restorable, data):
    """What is read is whole: the header decides which tensors there are, and their sizes."""
    whole = (checkpoint / "adapter_model.safetensors").read_bytes()
    copy = folder / "weights"
    shutil.copytree(checkpoint, copy, dirs_exist_ok=True)
    (copy / "adapter_model.safetensors").write_bytes(data.draw(damaged(whole, within=400)))
    refused_or_done(restorable.adapter.load, copy)


def loaded(config):
    read = load_config(config)
    tokenizer = load_tokenizer(config)
    model, _ = load_model(config, tokenizer)
    return read, model


@given(st.data(), st.sampled_from(["config.json", "tokenizer_config.json", "tokenizer.json"]))
@tries(40)
def test_model_folders(base, folder, data, name):
    whole = (base / name).read_bytes()
    copy = folder / "model"
    shutil.copytree(base, copy, dirs_exist_ok=True)
    within = 400 if name == "tokenizer.json" else None
    (copy / name).write_bytes(data.draw(damaged(whole, within=within)))
    config = ModelConfig(name=str(copy), device="cpu", dtype="float32")
    refused_or_done(load_config, config)
    refused_or_done(load_tokenizer, config)


@given(st.data())
@tries(25)
def test_headers_of_safetensors(base, folder, data):
    whole = (base / "model.safetensors").read_bytes()
    copy = folder / "headers"
    shutil.copytree(base, copy, dirs_exist_ok=True)
    (copy / "model.safetensors").write_bytes(data.draw(damaged(whole, within=600)))
    refused_or_done(loaded, ModelConfig(name=str(copy), device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def gguf_file(folder):
    from gguf import GGUFWriter

    path = folder / "whole.gguf"
    writer = GGUFWriter(path, "llama")
    for name, value in (
        ("context_length", 64),
        ("embedding_length", 32),
        ("block_count", 1),
        ("feed_forward_length", 48),
        ("head_count", 4),
        ("head_count_kv", 2),
        ("vocab_size", 258),
    ):
        getattr(writer, f"add_{name}")(value)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    vocabulary = tiny.tiny_tokenizer().vocab
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_tensor("output_norm.weight", torch.ones(32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@given(st.data())
@tries(40)
def test_headers_of_gguf(gguf_file, folder, data):
    path = folder / "damaged.gguf"
    path.write_bytes(data.draw(damaged(gguf_file.read_bytes(), within=900)))
    config = ModelConfig(name=str(path), device="cpu", dtype="float32")
    refused_or_done(load_config, config)
    refused_or_done(load_tokenizer, config)
