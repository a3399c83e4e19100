"""An export that is another model than the one that was trained is refused, however small the fault."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from linearard.errors import CheckpointError
from linearard.export import export_model
from linearard.export.probes import beyond, passages
from linearard.export.reader import in_float32, observe
from linearard.export.reading import Trained, compare, layer_type_of
from linearard.rope import RopeTable

TABLE, YARN = tiny.SCALINGS["table"], tiny.SCALINGS["yarn"]


class Sabotaged:
    """A reader before which somebody was at the files."""

    def __init__(self, reader, sabotage):
        self.reader, self.sabotage = reader, sabotage

    def read(self, probes, **request):
        self.sabotage(request["folder"])
        return self.reader.read(probes, **request)


def change_rope(**changes):
    """Set keys of the RoPE, or with a function change their values."""

    def sabotage(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for name in ("rope_parameters", "rope_scaling"):
            for key, change in changes.items():
                flat = config[name].get("full_attention", config[name])
                flat[key] = change(flat[key]) if callable(change) else change
        path.write_text(json.dumps(config))

    return sabotage


def change_config(name, **changes):
    def sabotage(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return sabotage


def lose_change(*wanted, base):
    """Put the base model's weights back where a name has one of these words."""

    def sabotage(folder):
        original = load_file(base / "model.safetensors")
        weights = load_file(folder / "model.safetensors")
        lost = [name for name in weights if any(word in name for word in wanted)]
        assert lost
        weights |= {name: original[name] for name in lost}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return sabotage


def slower(factors):
    return [*factors[:-1], 1.01 * factors[-1]]


LISTS = {"short_factor": slower, "long_factor": slower}
FAULTS = {
    "another base": (tiny.LINEAR, change_rope(rope_theta=10100.0), "rotate model.rotary_emb"),
    "another factor": (tiny.LINEAR, change_rope(factor=4.04), "rotate model.rotary_emb"),
    "the slowest frequency alone": (TABLE, change_rope(**LISTS), "frequencies from"),
    "slow frequencies of long texts alone": (TABLE, change_rope(long_factor=slower), "frequencies"),
    "attention factor": (YARN, change_rope(attention_factor=1.0), "attention scaling"),
    "native RoPE": (
        tiny.LINEAR,
        change_config("config.json", rope_scaling=None, rope_parameters={"rope_theta": 10000.0}),
        "rotate model.rotary_emb",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_rope_is_refused(fault, trained, tmp_path, reader):
    scaling, sabotage, words = FAULTS[fault]
    with pytest.raises(CheckpointError, match=words):
        export_model(trained(scaling), tmp_path / "out", readers=[Sabotaged(reader, sabotage)])
    assert os.listdir(tmp_path) == []  # nothing that a reader could take for a model


@pytest.mark.parametrize(
    "wanted",
    [("q_proj", "k_proj", "v_proj"), ("layers.1.self_attn.k_proj",)],
    ids=["all", "one matrix"],
)
@pytest.mark.parametrize("size", [0.3, 0.01])
def test_a_lost_change_of_weights_is_refused(wanted, size, trained, base_folder, tmp_path, reader):
    sabotage = lose_change(*wanted, base=base_folder)
    with pytest.raises(CheckpointError, match="the trained model's logits") as caught:
        readers = [Sabotaged(reader, sabotage)]
        export_model(trained(size=size), tmp_path / "out", readers=readers)
    assert float(caught.value.got) > 1e-4
    assert os.listdir(tmp_path) == []


def test_a_lost_adapter_is_refused(trained, tmp_path, reader):
    sabotage = change_config("adapter_config.json", lora_alpha=7.9)
    with pytest.raises(CheckpointError, match="the trained model's logits"):
        export_model(trained(), tmp_path / "out", "adapter", readers=[Sabotaged(reader, sabotage)])


def test_another_softmax_scale_is_refused(trained, tmp_path, reader):
    base = tiny.save_tiny_base(tmp_path / "base", "gemma3")
    sabotage = change_config("config.json", query_pre_attn_scalar=11)
    with pytest.raises(CheckpointError, match=r"scale attention scores by 0\.316228"):
        restorable = trained(architecture="gemma3", base=base)
        export_model(restorable, tmp_path / "out", readers=[Sabotaged(reader, sabotage)])


def test_an_earlier_export_is_as_it_was_after_a_refusal(trained, tmp_path, reader):
    export_model(trained(), tmp_path / "out", readers=[reader])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    sabotage = change_rope(rope_theta=10100.0)
    with pytest.raises(CheckpointError):
        readers = [Sabotaged(reader, sabotage)]
        export_model(trained(YARN), tmp_path / "out", overwrite=True, readers=readers)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_folder_that_transformers_cannot_read_is_said_in_words(trained, tmp_path, reader):
    sabotage = change_config("config.json", model_type="no_such_model")
    with pytest.raises(CheckpointError, match=r"transformers \d+\.\S+ to read .*no_such_model"):
        export_model(trained(), tmp_path / "out", readers=[Sabotaged(reader, sabotage)])


def test_without_a_tokenizer_random_tokens_are_compared(tmp_path, reader):
    restorable = tiny.tiny_restorable(architecture="mistral")
    restorable.tokenizer = None
    about = export_model(restorable, tmp_path / "out", readers=[reader])
    assert about["relative_error"] < 1e-5
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_positions_up_to_the_end_of_the_target_window_are_compared(trained, tmp_path, reader):
    asked = []

    class Listening:
        def read(self, probes, **request):
            asked.extend(probes)
            return reader.read(probes, **request)

    restorable = trained()
    target = restorable.rope.target_window
    export_model(restorable, tmp_path / "out", readers=[Listening()])
    spread, whole = asked[-2:]
    assert int(spread["position_ids"].max()) == target - 1 and spread["input_ids"].numel() <= 64
    assert whole["input_ids"].shape == (1, target) and "position_ids" not in whole


@pytest.mark.parametrize("whole", [True, False])
def test_float32_arithmetic_leaves_the_weights_as_they_were(whole):
    model = tiny.tiny_model("gemma3").to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exact = tiny.tiny_model("gemma3")
    for parameter, rounded in zip(exact.parameters(), model.parameters(), strict=True):
        parameter.data = rounded.data.float()
    for name, buffer in model.named_buffers():
        dict(exact.named_buffers())[name].copy_(buffer)
    ids = tiny.tokens(2, 41)
    with torch.no_grad(), in_float32(model, whole=whole):
        got = model(input_ids=ids, use_cache=False).logits
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, exact(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}


def test_last_positions_alone_are_kept():
    model = tiny.tiny_model()
    ids = tiny.tokens(1, 29)
    whole, last = (observe(model, [{"input_ids": ids, "keep": n}])["logits"][0] for n in (0, 5))
    assert whole.shape == (29, tiny.VOCAB)
    torch.testing.assert_close(last, whole[-5:])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.rotary_emb.inv_freq", ""),
        ("model.rotary_emb.sliding_attention_inv_freq", "sliding_attention"),
        ("model.rotary_emb_local.inv_freq", "sliding_attention"),
        ("model.rotary_embs.full_attention.inv_freq", "full_attention"),
        ("gpt_neox.layers.3.attention.rotary_emb.inv_freq", ""),
    ],
)
def test_versions_of_transformers_name_the_same_table_differently(name, kind):
    assert layer_type_of(name) == kind


def test_a_long_text_gives_way_where_attention_writes_its_scores_down(monkeypatch):
    """Of 65,536 tokens they would be 64 GB a layer here."""
    longest = []
    for architecture in ("llama", "gemma2"):
        restorable = tiny.tiny_restorable(architecture)
        monkeypatch.setattr(restorable.rope, "target_window", 65_536)
        longest.append(
            max(p["input_ids"].shape[1] for p in beyond(restorable, passages(restorable)))
        )
    assert longest == [32_768, 8_192]


def test_rounding_of_few_far_positions_is_no_fault_but_a_fault_of_all_is():
    """Tokens laid over a long window amplify the last place of a frequency at some positions."""
    torch.manual_seed(0)
    logits = torch.randn(64, 31)
    table = {"": RopeTable(torch.ones(4), 1.0)}

    def check(error, positions, far):
        found = logits.clone()
        found[:positions] *= 1 + error
        trained = Trained(
            tables=table,
            observed={"tables": {}, "scales": {}, "logits": [logits]},
            change=0.5,
            device=torch.device("cpu"),
            far=(far,),
        )
        seen = {"transformers": "5", "scales": {}, "logits": [found]}
        seen["tables"] = {"rotary.inv_freq": (torch.ones(4), 1.0)}
        return compare(trained, seen, device="cpu")

    assert check(8e-3, 15, far=True)["relative_error"] > 1e-3
    for positions, far in ((40, True), (15, False)):
        with pytest.raises(CheckpointError, match="to give the trained model's logits"):
            check(1e-3, positions, far)
