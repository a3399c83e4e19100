"""The model card of an export: complete, readable by the hub, and no harm to what a user wrote."""

import json
import re

import gguf
import pytest
from huggingface_hub import ModelCard

import tiny
from linearard.export import Story, export_model, write_card
from linearard.export.license import license_of
from linearard.pipeline import told
from linearard.recipe import recipe_from_dict

ABOUT = {
    "form": "merged",
    "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "rope": {"rope_type": "yarn", "factor": 10.0, "rope_theta": 100000.0},
    "window": 65536,
}
EVALUATION = {
    "meta": {
        "documents": {"count": 6},
        "device": "a GPU",
        "dtype": "bfloat16",
        "date": "2026-11-28T1",
    },
    "stages": {"only": {"tokens": 4194304, "steps": 250, "seconds": 9.0}},
    "views": {
        view: {"perplexity": {"2048": {"ppl": ppl, "ppl_ci95": [ppl - 1, ppl + 1]}}}
        for view, ppl in (("original", 24.7), ("stretched", 215.7), ("restored", 23.9))
    },
}


@pytest.fixture
def folder(tmp_path):
    rope = {"rope_parameters": {"rope_type": "longrope"}}
    (tmp_path / "config.json").write_text(json.dumps(rope))
    return tmp_path


def recipe():
    return recipe_from_dict(
        {
            "model": {"name": "x"},
            "rope": {"rope_type": "yarn", "factor": 10},
            "data": {"train": "books/"},
            "stages": {"only": {"window": 4096, "data": {"train": "self"}}},
        }
    )


def test_everything_that_a_stranger_needs_is_there(folder, monkeypatch):
    monkeypatch.setattr("linearard.export.card.license_of", lambda name: "apache-2.0")
    story = told(recipe(), EVALUATION)
    text = write_card(folder, ABOUT, native_window=8192, story=story).read_text()
    data = ModelCard(text).data
    assert data.license == "apache-2.0" and data.base_model == ABOUT["base_model"]
    assert data.library_name == "transformers"
    for said in (
        "reads 8,192 tokens; this model was stretched to read 65,536",
        "arxiv.org/abs/2604.00004",
        "rope_type yarn, factor 10.0",
        "Stage only: windows of 4,096 tokens, 4,194,304 tokens in 250 steps.",
        "`books/` and text that the original wrote itself",
        "| original",
        "24.70 [23.70, 25.70]",
        "215.70 [214.70, 216.70]",
        "23.90 [22.90, 24.90]",
        "6 documents), a GPU, bfloat16, 2026-11-28",
        "AutoModelForCausalLM.from_pretrained",
        "vllm serve .\n",
        "sglang.launch_server",
        "--format gguf",
        "not meant for more than 65,536 tokens",
        "No window longer than 4,096 tokens was trained",
        "llama.cpp's converter drops",
        "Of the base model: apache-2.0",
    ):
        assert said in text, said


def test_what_is_not_known_is_said_to_be_unknown(folder):
    text = write_card(folder, ABOUT | {"base_model": "tiny"}, native_window=64).read_text()
    assert "None were recorded" in text and "not known here" in text
    assert "license" not in ModelCard(text).data.to_dict()


def test_vllm_is_told_the_window_of_linear_scaling(folder):
    (folder / "config.json").write_text(json.dumps({"rope_parameters": {"rope_type": "linear"}}))
    text = write_card(folder, ABOUT | {"base_model": "x"}, native_window=8192).read_text()
    assert "vllm serve . --max-model-len 65536" in text


def test_yarn_says_which_transformers_it_needs(folder):
    (folder / "config.json").write_text(json.dumps({"rope_parameters": {"rope_type": "yarn"}}))
    text = write_card(folder, ABOUT | {"base_model": "x"}, native_window=8192).read_text()
    assert "Needs transformers 4.51 or later" in text


def test_a_readme_that_a_user_wrote_stays(folder):
    (folder / "README.md").write_text("mine")
    about = ABOUT | {"base_model": "x"}
    assert write_card(folder, about, native_window=64).name == "MODEL_CARD.md"
    assert (folder / "README.md").read_text() == "mine"
    (folder / "README.md").unlink()
    for measured in ("first", "second"):  # its own it writes anew
        story = Story(scores=[("a", {"original": "1"})], measured=measured)
        path = write_card(folder, about, native_window=64, story=story)
        assert path.name == "README.md" and measured in path.read_text()


@pytest.mark.parametrize(
    ("form", "said"), [("adapter", "PeftModel.from_pretrained"), ("merged", "from_pretrained")]
)
def test_every_export_has_one_whose_python_runs_as_it_is_pasted(
    form, said, tmp_path, monkeypatch, capsys
):
    base = tiny.save_tiny_base(tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: mit\n---\nA tiny model.\n")
    model = tiny.tiny_restorable(name=str(base))
    tiny.perturb_adapter(model)
    export_model(model, tmp_path / "out", form, window=200)
    text = (tmp_path / "out" / "README.md").read_text()
    assert said in text and "stretched to read 200" in text
    assert ModelCard(text).data.license == "mit"
    about = json.loads((tmp_path / "out" / "linearard_export.json").read_text())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["window"] == config["max_position_embeddings"] == 200
    monkeypatch.chdir(tmp_path / "out")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("<s>Once upon a time")


def test_licence_of_a_gguf(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_license("apache-2.0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    assert license_of(str(tmp_path / "x.gguf")) == "apache-2.0"
    assert license_of(str(tmp_path / "gone.gguf")) is None
