import math

import pytest
import torch

from linearard.errors import DataError
from linearard.evaluation.perplexity import window_perplexity
from linearard.evaluation.windows import cut_windows
from linearard.model import ChunkedCausalLM


@torch.no_grad()
def dense_nll(model, windows):
    """Float64 [windows, tokens - 1] from the model's own logits, all at once."""
    logits = model.double()(windows).logits
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    return -log_p[:, :-1].gather(2, windows[:, 1:, None])[..., 0]


@pytest.mark.parametrize("window", [2, 7, 41, 130])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_is_the_dense_float64_perplexity(model, documents, small_chunks, window, batch_size):
    windows = cut_windows(documents, window, 5 * window)
    got = window_perplexity(ChunkedCausalLM(model), windows, batch_size=batch_size, seed=0)
    nll = dense_nll(model, windows)

    assert got["tokens"] == nll.numel() and got["windows"] == len(windows)
    assert got["nll_sum"] == pytest.approx(nll.sum().item(), rel=1e-5)
    assert got["ppl"] == pytest.approx(math.exp(nll.mean().item()), rel=1e-4)
    assert got["window_nll"] == pytest.approx(nll.mean(1).tolist(), rel=1e-5)
    low, high = got["ppl_ci95"]
    assert low < got["ppl"] < high


def test_buckets_hold_each_position_once(model, documents):
    windows = cut_windows(documents, 300, 900)
    got = window_perplexity(ChunkedCausalLM(model), windows, batch_size=2, seed=0)
    nll = dense_nll(model, windows).mean(0)
    spans = [(b["start"], b["end"]) for b in got["by_position"]]
    assert spans == [(1, 128), (128, 256), (256, 300)]
    for bucket in got["by_position"]:
        expected = nll[bucket["start"] - 1 : bucket["end"] - 1].mean().item()
        assert bucket["nll"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("config_name", "options"),
    [
        ("Gemma2Config", {"final_logit_softcapping": 3.0, "sliding_window": 4096}),
        ("GraniteConfig", {"logits_scaling": 6.0}),
        ("CohereConfig", {"logit_scale": 0.3}),
    ],
)
def test_output_stages_are_honoured(make_model, documents, config_name, options):
    model = make_model(config_name, **options)
    windows = cut_windows(documents, 40, 120)
    got = window_perplexity(ChunkedCausalLM(model), windows, batch_size=8, seed=0)
    assert got["nll_sum"] == pytest.approx(dense_nll(model, windows).sum().item(), rel=1e-4)


@pytest.mark.parametrize(("window", "tokens"), [(7, 70), (40, 400), (41, 1), (400, 10_000)])
def test_windows_stay_in_their_document_and_never_overlap(window, tokens):
    lengths = [401, 30, 977, 41]
    # Every id names its document and position.
    documents = [torch.arange(n) + 10_000 * i for i, n in enumerate(lengths)]
    windows = cut_windows(documents, window, tokens)

    assert (windows.diff(dim=1) == 1).all()
    assert windows.unique().numel() == windows.numel()
    available = [n // window for n in lengths]
    assert len(windows) == min(max(1, tokens // window), sum(available))
    counts = (windows[:, 0] // 10_000).bincount(minlength=4).tolist()
    full = [c for c, a in zip(counts, available, strict=True) if c < a]
    assert max(full, default=0) - min(full, default=0) <= 1  # shared evenly


def test_too_short_documents_are_refused_with_the_longest_length():
    with pytest.raises(DataError, match=r"at least 64 tokens.*longest of 50 tokens"):
        cut_windows([torch.zeros(50, dtype=torch.long)], 64, 1000)
    with pytest.raises(DataError, match="0 documents"):
        cut_windows([], 64, 1000)
