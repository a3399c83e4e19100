"""A merge keeps what training changed, or says that it does not; how much is a number."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import kl_div, log_softmax

import tiny
from linearard.errors import RecipeError
from linearard.export import export_model
from linearard.export.merging import kl, look, merge
from linearard.export.probes import passages
from linearard.export.rounding import KeptChange, stochastic

HALVES = [torch.bfloat16, torch.float16]
#: Of the noise on each trained weight: far below, about, and far above what bfloat16 distinguishes here.
TINY, SMALL, LARGE = 2e-4, 1e-3, 1e-1


def narrow(size, **adapter):
    """A model whose base weights are bfloat16, trained by this much."""
    model = tiny.tiny_model()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    restorable = tiny.tiny_restorable(model=model, **adapter)
    tiny.perturb_adapter(restorable, size=size)
    return restorable


def tried(restorable, asked="auto"):
    texts = passages(restorable)
    return merge(restorable, asked, texts, look(restorable, texts))[1]


@pytest.mark.parametrize("kind", ["lora", "direct"])
@pytest.mark.parametrize("size", [TINY, SMALL])
def test_a_change_that_bfloat16_does_not_hold_is_kept_in_float32(kind, size, tmp_path, reader):
    """At the learning rates of large models most of it would be rounded away."""
    restorable = narrow(size, kind=kind)
    original = {k: v.clone() for k, v in narrow(0.0, kind=kind).model.state_dict().items()}
    about = export_model(restorable, tmp_path / "out", readers=[reader])
    price, before = about["merge"], about["merges_tried"]
    assert [(p["dtype"], p["rounding"]) for p in before] == [
        ("bfloat16", "nearest"),
        ("bfloat16", "stochastic"),
    ]
    assert price["dtype"] == "float32" and price["change"]["share"] == pytest.approx(1, abs=1e-6)
    assert before[0]["change"]["share"] < 0.999 and before[0]["noise"] > 0.05
    assert price["kl_exported"] == pytest.approx(price["kl_restored"], rel=1e-3)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    wide = {name for name, tensor in weights.items() if tensor.dtype == torch.float32}
    assert {name.split(".")[-2] for name in wide} == {"q_proj", "k_proj", "v_proj"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float32"  # or a reader would round it away after all
    assert "read this export in float32" in " ".join(about["notes"])
    if kind == "lora":
        name = "model.layers.1.self_attn.v_proj"
        base = original[f"base_model.model.{name}.base_layer.weight"]
        trained = narrow(size).model.get_submodule(f"base_model.model.{name}")
        change = trained.get_delta_weight("default")
        kept = weights[f"{name}.weight"] - base.float()
        torch.testing.assert_close(kept, change, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("kind", ["lora", "direct"])
def test_a_large_change_stays_in_bfloat16(kind, tmp_path, reader):
    about = export_model(narrow(LARGE, kind=kind), tmp_path / "out", readers=[reader])
    assert (about["merge"]["dtype"], about["merge"]["rounding"]) == ("bfloat16", "nearest")
    assert about["merges_tried"] == [] and about["notes"] == []
    assert about["merge"]["change"]["cosine"] > 0.99
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_bfloat16_that_does_not_hold_the_change_is_refused_in_words(tmp_path):
    with pytest.raises(RecipeError, match="holds what training changed") as caught:
        export_model(narrow(TINY), tmp_path / "out", merge_dtype="model")
    assert "of the change kept" in caught.value.got and "float32" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_float32_can_be_asked_for(tmp_path):
    (price,) = tried(narrow(LARGE), "float32")
    assert (price.dtype, price.narrower) == ("float32", True)


def test_where_the_mean_is_enough_stochastic_rounding_is_taken(monkeypatch):
    """In wide layers products see the whole change; a tiny model is told to be content with less."""
    monkeypatch.setattr("linearard.export.merging._NOISE_SHARE", 1.0)
    prices = tried(narrow(SMALL))
    assert [price.rounding for price in prices] == ["nearest", "stochastic"]
    nearest, taken = prices
    assert abs(taken.change["share"] - 1) < 0.02 < abs(nearest.change["share"] - 1)


def test_untrained_weights_cost_nothing():
    (price,) = tried(narrow(0.0))
    assert price.kept and price.change["share"] == 1.0 and price.worst_matrix == {}
    assert price.kl_exported == price.kl_restored


@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_rounding_takes_the_two_neighbours_with_the_right_mean(dtype):
    grid = torch.tensor([-1.5, -3e-3, 0.0, 2e-3, 0.7, 90.0]).to(dtype)
    step = torch.finfo(dtype).eps * grid.abs().float()
    wanted = grid.float() + 0.3 * step * torch.tensor([1, -1, 1, 1, -1, -1])
    many = wanted.repeat(20_000, 1)
    got = stochastic(many, dtype, "name").float()
    for column, value in enumerate(wanted):
        found = got[:, column].unique()
        below, above = found.min(), found.max()
        assert len(found) <= 2 and below <= value <= above
        gap = float(above - below)
        assert gap <= 2 * torch.finfo(dtype).eps * float(abs(value))
        assert float(got[:, column].double().mean() - value) == pytest.approx(0, abs=0.02 * gap)


@pytest.mark.parametrize("dtype", HALVES)
def test_stochastic_rounding_leaves_numbers_that_need_none(dtype):
    exact = torch.randn(31, 17).to(dtype)
    exact[0] = 0.0
    assert torch.equal(stochastic(exact.float(), dtype, "name"), exact)


def test_stochastic_rounding_around_zero():
    smallest = torch.finfo(torch.float16).smallest_normal / 1024  # the first subnormal number
    for sign in (1, -1):
        got = stochastic(torch.full((20_000,), sign * 0.25 * smallest), torch.float16, "x").float()
        assert set(got.abs().tolist()) == {0.0, smallest}
        assert float(got.mean()) == pytest.approx(sign * 0.25 * smallest, rel=0.05)


def test_the_same_weight_is_rounded_the_same_way_every_time():
    weight = torch.randn(40, 40)
    first, again, other = (stochastic(weight, torch.bfloat16, name) for name in "aab")
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_share_cosine_and_norm_of_what_is_kept():
    original = torch.zeros(2, 2)
    trained = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    kept = KeptChange()
    kept.add("half", original, trained, 0.5 * trained)
    kept.add("turned", original, trained, torch.tensor([[-4.0, 3.0], [0.0, 0.0]]))
    kept.add("untrained", original, original, original)
    assert kept.by_name["half"] == pytest.approx({"share": 0.5, "cosine": 1.0, "norm": 0.5})
    assert kept.by_name["turned"] == pytest.approx({"share": 0.0, "cosine": 0.0, "norm": 1.0})
    assert "untrained" not in kept.by_name
    wanted = {"share": 12.5 / 50, "cosine": 12.5 / (50 * 31.25) ** 0.5, "norm": (31.25 / 50) ** 0.5}
    assert kept.total == pytest.approx(wanted)


def test_divergence_is_that_of_torch():
    target, other = ([torch.randn(n, 11) for n in (3, 7)] for _ in range(2))
    logs = [log_softmax(torch.cat(x).double(), -1) for x in (other, target)]
    expected = kl_div(*logs, reduction="batchmean", log_target=True)
    assert kl(target, other) == pytest.approx(float(expected))
