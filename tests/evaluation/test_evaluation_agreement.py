import pytest
import torch

from linearard.evaluation.agreement import window_agreement
from linearard.evaluation.windows import cut_windows
from linearard.model import ChunkedCausalLM

NAMES = ["stretched", "restored"]


@torch.no_grad()
def dense(model, views, name, windows):
    """Float64 KL and top-1 hits [windows, tokens], from whole logits."""
    with views["original"]():
        original = model(windows).logits
    with views[name]():
        view = model(windows).logits
    p = original.softmax(-1)
    kl = (p * (p / view.softmax(-1)).log()).sum(-1)
    return kl, (original.argmax(-1) == view.argmax(-1)).double()


@pytest.mark.parametrize("window", [5, 41, 131])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_is_the_dense_float64_agreement(
    model, make_views, documents, small_chunks, window, batch_size
):
    windows = cut_windows(documents, window, 7 * window)
    got = window_agreement(
        ChunkedCausalLM(model), make_views(model), NAMES, windows, batch_size=batch_size, seed=0
    )
    model.double()
    views = make_views(model)
    for name in NAMES:
        kl, same = dense(model, views, name, windows)
        assert kl.mean() > 0.01  # there is something to measure
        assert got[name]["kl"] == pytest.approx(kl.mean().item(), rel=1e-4)
        assert got[name]["window_kl"] == pytest.approx(kl.mean(1).tolist(), rel=1e-3)
        assert got[name]["top1"] == pytest.approx(same.mean().item(), abs=1e-9)
        assert got[name]["tokens"] == windows.numel()
        spans = [(0, min(window, 128))] + [(128, window)] * (window > 128)
        assert [(b["start"], b["end"]) for b in got[name]["by_position"]] == spans
        for bucket in got[name]["by_position"]:
            expected = kl[:, bucket["start"] : bucket["end"]].mean().item()
            assert bucket["kl"] == pytest.approx(expected, rel=1e-3)
        low, high = got[name]["kl_ci95"]
        assert low < got[name]["kl"] < high


def test_a_view_that_changes_nothing_agrees_exactly(model, make_views, documents):
    views = make_views(model)
    views["restored"] = views["original"]
    windows = cut_windows(documents, 40, 160)
    got = window_agreement(
        ChunkedCausalLM(model), views, ["restored"], windows, batch_size=2, seed=0
    )
    assert got["restored"]["kl"] == 0 and got["restored"]["top1"] == 1


def test_views_are_entered_one_at_a_time_and_left(model, make_views, documents):
    log = []
    views = make_views(model, log)
    before = model.model.rotary_emb.inv_freq.clone()
    windows = cut_windows(documents, 40, 80)
    window_agreement(ChunkedCausalLM(model), views, NAMES, windows, batch_size=8, seed=0)
    assert log[0::2] == ["original", "stretched", "restored", "original"]
    assert log[1::2] == [f"/{name}" for name in log[0::2]]
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
