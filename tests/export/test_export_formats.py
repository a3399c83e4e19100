"""Merged, adapter and in-memory student are one model, for every scaling, read in a new process."""

import json
import subprocess
import sys
from math import log, pi
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import tiny
from linearard.export import export_model
from linearard.export.configuration import reader_notes, write_configuration, write_tokenizer
from linearard.model import AdapterConfig, ModelConfig, RestorableModel
from linearard.rope import RopeViews

LONG = 3 * tiny.WINDOW  # beyond the native window, within the target
YARN = tiny.SCALINGS["yarn"]
SCALINGS = tiny.SCALINGS | {
    "linear from 48": tiny.LINEAR | {"original_max_position_embeddings": 48},
    "yarn without attention factor": YARN | {"attention_factor": 1.0},
    "yarn with mscale": YARN | {"mscale": 0.7, "mscale_all_dim": 0.2},
}
HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
#: Other architectures: name, scaling, changes of the configuration.
ROTATED = {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.5}
OTHERS = {
    "gpt_neox": ("gpt_neox", tiny.LINEAR, {"rope_parameters": ROTATED}),
    "gpt_neox llama3": ("gpt_neox", tiny.SCALINGS["llama3"], {"rope_parameters": ROTATED}),
    "qwen3": ("qwen3", YARN, {}),
    "mistral": ("mistral", tiny.LINEAR, {}),
    "olmo2": ("olmo2", tiny.LINEAR, {}),
    "gemma3": ("gemma3", tiny.LINEAR, {}),
    "gemma3 dynamic": ("gemma3", tiny.SCALINGS["dynamic"], {}),
    "phi3": ("phi3", tiny.LINEAR, {}),
    "phi3 partial": ("phi3", YARN, {"rope_parameters": HALF}),
}
FORMS = [
    ("merged", "lora", "float32"),
    ("adapter", "lora", "float32"),
    ("merged", "lora", "bfloat16"),
]
CASES = [(name, *form) for name in SCALINGS for form in FORMS]
CASES += [(name, "merged", "direct", "float32") for name in ("linear", "table")]
CASES += [("yarn", "adapter", "lora", "bfloat16"), ("yarn", "merged", "direct", "bfloat16")]
CASES += [(name, form, "lora", "float32") for name in OTHERS for form in ("merged", "adapter")]


def case_id(case):
    return "-".join(case)


def save_base(folder, architecture, dtype, changes):
    model = tiny.tiny_model(architecture, **changes)
    for parameter in model.parameters():  # not .to(): that would round the RoPE frequencies
        parameter.data = parameter.data.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tiny.tiny_tokenizer().save_pretrained(folder)


def relative_errors(got, expected):
    pairs = zip(got, expected, strict=True)
    return [float((g.double() - e.double()).norm() / e.double().norm()) for g, e in pairs]


@torch.no_grad()
def rounding_errors(restorable, base, student, scaling):
    """How far bfloat16 arithmetic takes the student's logits from float32 over the same weights."""
    exact = RestorableModel.load(
        ModelConfig(name=str(base), device="cpu", dtype="float32"),
        scaling,
        restorable.adapter.config,
    )
    for to, of in zip(exact.adapter.parameters(), restorable.adapter.parameters(), strict=True):
        to.copy_(of)
    return relative_errors(student, [exact.model(input_ids=i, use_cache=False).logits for i in IDS])


class Export:
    """One export: where it is, what the student said, and how export_model compared."""

    def __init__(self, root: Path, case, reader) -> None:
        name, form, kind, dtype = case
        architecture, scaling, changes = OTHERS.get(name, ("llama", SCALINGS.get(name), {}))
        base = root / f"base {architecture} {dtype} {len(changes)}"
        if not base.exists():
            save_base(base, architecture, dtype, changes)
        torch.manual_seed(0)  # LoRA's A is drawn
        restorable = RestorableModel.load(
            ModelConfig(name=str(base), device="cpu", dtype=dtype),
            scaling,
            AdapterConfig(kind=kind, r=4, alpha=8.0, dropout=0.0),
            trainable=True,
        )
        tiny.perturb_adapter(restorable, size=0.1)
        with torch.no_grad():
            self.student = [restorable.model(input_ids=i, use_cache=False).logits for i in IDS]
        self.budget = [1e-4, 1e-4]
        if dtype == "bfloat16":
            self.budget = [2 * e for e in rounding_errors(restorable, base, self.student, scaling)]
        self.folder = root / case_id(case)
        self.rope = restorable.rope
        self.comparison = export_model(restorable, self.folder, form, readers=[reader])
        self.config = json.loads((self.folder / "config.json").read_text())


IDS = [tiny.tokens(2, 23), tiny.tokens(1, LONG, seed=1)]


@pytest.fixture(scope="module")
def exports(tmp_path_factory, reader):
    root = tmp_path_factory.mktemp("exports")
    return {case: Export(root, case, reader) for case in CASES}


@pytest.fixture(scope="module")
def read_back(exports, tmp_path_factory):
    """Logits of every export by folder, from a process that does not know linearard."""
    root = tmp_path_factory.mktemp("read")
    torch.save(IDS, root / "ids.pt")
    folders = [str(export.folder) for export in exports.values()]
    script = Path(__file__).with_name("read_back.py")
    command = [sys.executable, str(script), str(root / "ids.pt"), str(root / "out.pt"), *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(root / "out.pt")


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_read_in_a_new_process_it_is_the_student(case, exports, read_back):
    export = exports[case]
    logits, rope_ids, length = read_back[str(export.folder)]
    assert {x.dtype for x in logits + export.student} == {getattr(torch, case[3])}
    errors = relative_errors(logits, export.student)
    assert all(e < b <= 0.1 for e, b in zip(errors, export.budget, strict=True)), export.budget
    assert rope_ids == tiny.tiny_tokenizer()("rope").input_ids
    assert length == export.rope.target_window


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_the_comparison_measures_what_a_reader_gets(case, exports):
    export = exports[case]
    assert 0 <= export.comparison["relative_error"] < 1e-5  # in float32 for both precisions
    assert export.comparison["top1_agreement"] == 1.0
    about = json.loads((export.folder / "linearard_export.json").read_text())
    assert about.items() >= export.comparison.items() and about["form"] == case[1]


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_configuration_says_it_in_every_dialect(case, exports):
    export = exports[case]
    config, rope = export.config, export.rope
    window = 48 if case[0] == "linear from 48" else tiny.WINDOW
    assert config["max_position_embeddings"] == rope.target_window == 4 * window
    flat = config["rope_parameters"]
    flat = flat.get("full_attention", flat)
    assert config["rope_theta"] == flat["rope_theta"]
    if flat["rope_type"] == "default":
        assert config["rope_scaling"] is None
    elif case[0] == "olmo2":
        assert config["rope_scaling"] == {"type": "linear", "factor": 4.0}
    else:
        assert config["rope_scaling"] == flat  # complete: transformers 5 reads it first
    if case[0].startswith("gpt_neox"):  # its names in transformers 4
        assert (config["rotary_emb_base"], config["rotary_pct"]) == (50000.0, 0.5)
    assert "linearard" not in json.dumps(config) and "quantization" not in json.dumps(config)


def flat_parameters(exports, name):
    return exports[name, "merged", "lora", "float32"].config["rope_parameters"]


def test_linear_of_a_llama_is_llama3_that_divides_every_frequency(exports):
    """vLLM multiplies the window of `linear` by its factor once more."""
    for name, window in (("linear", 64), ("linear from 48", 48)):
        flat = flat_parameters(exports, name)
        assert flat["rope_type"] == "llama3" and flat["factor"] == 4.0
        assert flat["original_max_position_embeddings"] / flat["low_freq_factor"] == 1 < 2 * pi
        assert flat["high_freq_factor"] > flat["low_freq_factor"]
        assert flat["original_max_position_embeddings"] == window


def test_linear_of_others_is_written_as_it_was_asked_for(exports):
    config = exports["olmo2", "merged", "lora", "float32"].config
    expected = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    assert config["rope_parameters"] == expected
    assert isinstance(config["rope_parameters"]["factor"], float)  # vLLM tells by the type


def test_dynamic_becomes_a_larger_base(exports):
    flat = flat_parameters(exports, "dynamic")
    expected = 10000.0 * (4 * 4 - 3) ** (8 / 6)
    assert flat == {"rope_type": "default", "rope_theta": pytest.approx(expected, rel=1e-5)}


@pytest.mark.parametrize("name", ["longrope", "table", "phi3", "yarn without attention factor"])
def test_tables_become_longrope_with_equal_factors(name, exports):
    flat = flat_parameters(exports, name)
    assert flat["rope_type"] == "longrope" and flat["short_factor"] == flat["long_factor"]
    (table,) = exports[name, "merged", "lora", "float32"].rope.tables("stretched").values()
    plain = [10000.0 ** (-i / 4) for i in range(4)]
    for f, by, live in zip(plain, flat["long_factor"], table.inv_freq.tolist(), strict=True):
        assert f / by == pytest.approx(live, rel=1e-6)
    # vLLM reads the last two
    for key in ("attention_factor", "short_mscale", "long_mscale"):
        assert flat[key] == table.attention_scaling


def test_plain_yarn_names_its_attention_factor_twice(exports):
    """transformers and new vLLM read attention_factor; others multiply attn_factor by their own."""
    flat = flat_parameters(exports, "yarn")
    (table,) = exports["yarn", "merged", "lora", "float32"].rope.tables("stretched").values()
    assert flat["attention_factor"] == table.attention_scaling == pytest.approx(0.1 * log(4) + 1)
    assert flat["attn_factor"] == 1.0
    assert flat["original_max_position_embeddings"] == tiny.WINDOW


def test_gemma3_keeps_native_rope_in_sliding_layers(exports):
    config = exports["gemma3", "merged", "lora", "float32"].config
    assert config["rope_parameters"]["sliding_attention"]["rope_type"] == "default"
    assert config["rope_local_base_freq"] == 10000.0


def test_partial_rotary_models_say_so_beside_the_scaling(exports):
    config = exports["phi3 partial", "merged", "lora", "float32"].config
    assert config["partial_rotary_factor"] == 0.5
    assert config["original_max_position_embeddings"] == tiny.WINDOW
    assert len(config["rope_scaling"]["long_factor"]) == 2


def test_the_tokenizer_is_written_for_transformers_4_too(tmp_path):
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    length = tokenizer.model_max_length
    write_tokenizer(tokenizer, 256, tmp_path)
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert content["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert content["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in content
    assert tokenizer.model_max_length == length == tiny.WINDOW  # the live one is left alone
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.model_max_length == 256
    text = "rope <|im_start|> window"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.decode(again(text).input_ids, skip_special_tokens=True) == "rope  window"


def test_merged_folder_is_a_plain_model(exports):
    names = {p.name for p in exports["linear", "merged", "lora", "float32"].folder.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "linearard_export.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_adapter_folder_names_its_base(exports):
    export = exports["linear", "adapter", "lora", "float32"]
    names = {p.name for p in export.folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json"} < names
    assert not any(name.startswith("model") for name in names)
    base = json.loads((export.folder / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ]
    assert (Path(base) / "model.safetensors").is_file()


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt_neox_japanese"])
@pytest.mark.parametrize(("share", "base"), [(0.25, 10000.0), (0.5, 20000.0), (1.0, 50000.0)])
def test_base_and_rotated_share_under_the_names_of_the_class(architecture, share, base, tmp_path):
    """Both classes have defaults of their own that come back where their own names are missing."""
    rope = {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": share}
    model = tiny.tiny_model(architecture, rope_parameters=rope)
    views = RopeViews(model, tiny.LINEAR)
    write_configuration(model.config, views, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert (content["rotary_emb_base"], content["rotary_pct"]) == (base, share)
    for dropped in ("rope_scaling", "rope_parameters"):  # readers of one of them
        (tmp_path / "config.json").write_text(
            json.dumps({k: v for k, v in content.items() if k != dropped})
        )
        again = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
        rotary = next(m for m in again.modules() if hasattr(m, "inv_freq"))
        expected = [base ** (-2 * i / (16 * share)) / 4 for i in range(int(8 * share))]
        assert rotary.inv_freq.tolist() == pytest.approx(expected, rel=1e-5)


def test_keys_that_the_model_reads_elsewhere_stay(tmp_path):
    """Ministral 3 keeps a factor on its queries among the RoPE parameters."""
    own = {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": tiny.WINDOW // 2,
        "rope_theta": 10000.0,
        "llama_4_scaling_beta": 0.1,
    }
    model = tiny.tiny_model(rope_parameters=own)
    views = RopeViews(model, tiny.SCALINGS["table"])
    write_configuration(model.config, views, tmp_path)
    flat = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    assert flat["rope_type"] == "longrope" and flat["llama_4_scaling_beta"] == 0.1
    assert flat["original_max_position_embeddings"] == tiny.WINDOW // 2  # it counts from there
    assert "mscale" not in flat and "beta_fast" not in flat


@pytest.mark.parametrize(
    ("model_type", "kind", "words"),
    [
        ("olmo", "yarn", "transformers 4 refuses this yarn scaling of olmo"),
        ("olmo2", "longrope", "transformers 4 refuses this longrope"),
        ("phi3", "longrope", "transformers 4 refuses this longrope"),
        ("doge", "yarn", "transformers 4 computes doge otherwise"),
        ("dbrx", "yarn", "transformers 4 cannot read a configuration of dbrx"),
        ("granitemoehybrid", "linear", "cannot read a configuration of granitemoehybrid"),
        ("olmo2", "linear", None),
        ("nemotron", "linear", "ignores RoPE scaling of nemotron"),
        ("nemotron", "default", None),
        ("llama", "yarn", None),
    ],
)
def test_what_transformers_4_cannot_read_is_told(model_type, kind, words):
    notes = reader_notes(model_type, {"rope_type": kind})
    assert (words in notes[0] and "transformers 5" in notes[0]) if words else notes == []


@pytest.mark.parametrize(
    ("dtype", "narrower", "told"),
    [("float32", False, True), ("float32", True, False), ("bfloat16", False, False)],
)
def test_an_activation_that_transformers_4_rounds_is_told(dtype, narrower, told):
    merge = {"dtype": dtype, "narrower": narrower}
    notes = reader_notes("apertus", {"rope_type": "yarn"}, merge)
    assert any("of apertus to bfloat16" in note for note in notes) == told


@pytest.mark.parametrize("scaling", ["table", "linear"])
def test_a_class_that_takes_no_flat_scaling_is_given_none(scaling, tmp_path):
    """Cohere Compass checks that there is a mapping for every layer type, and raises what it likes."""
    if not hasattr(transformers, "CohereCompassTextConfig"):
        pytest.skip("this version of transformers has no Cohere Compass")
    shape = {key: getattr(tiny.tiny_config(), key) for key in tiny.SHAPE_KEYS}
    own = {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    config = transformers.CohereCompassTextConfig(**shape | {"head_dim": 8}, rope_parameters=own)
    views = RopeViews(AutoModelForCausalLM.from_config(config), tiny.SCALINGS[scaling])
    write_configuration(config, views, tmp_path)
    again = AutoConfig.from_pretrained(tmp_path).get_text_config()
    assert "factor" in again.rope_parameters["full_attention"]
    model = AutoModelForCausalLM.from_config(again)
    (found,) = (b for name, b in model.named_buffers() if name.endswith("full_attention_inv_freq"))
    expected = views.tables("stretched")["full_attention"].inv_freq
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_what_a_configuration_leaves_to_its_readers_is_written_down(tmp_path):
    """transformers 4 calls the number of experts otherwise, and 5 forgets that head_dim may be empty."""
    sizes = {"num_local_experts": 3, "num_experts_per_tok": 1, "head_dim": None}
    config = transformers.MixtralConfig(
        **tiny.tiny_config().to_dict() | sizes | {"model_type": "mixtral"}
    )
    model = AutoModelForCausalLM.from_config(config)
    write_configuration(model.config, RopeViews(model, tiny.SCALINGS["table"]), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["num_experts"] == content["num_local_experts"] == 3
    assert content["head_dim"] == 8 and config.head_dim is None
    again = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    expected = tiny.SCALINGS["table"]["inv_freq"]
    assert again.model.rotary_emb.inv_freq.tolist() == pytest.approx(expected, rel=1e-5)
