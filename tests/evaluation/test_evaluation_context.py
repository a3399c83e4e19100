"""The loss of the same tokens, read with growing context."""

import math

import pytest
import torch

from linearard.data import Documents
from linearard.errors import DataError
from linearard.evaluation import EvaluationConfig, evaluate, summarise
from linearard.evaluation.context import (
    compare_with_original,
    context_losses,
    context_windows,
    scored_tokens,
)
from linearard.model import ChunkedCausalLM

LENGTHS = [30, 130, 64]


@torch.no_grad()
def dense_loss(model, windows, scored):
    """Mean -log p in float64 of each window's last tokens, from the model's own logits."""
    log_p = model.double()(windows).logits.log_softmax(-1)
    nll = -log_p[:, :-1].gather(2, windows[:, 1:, None])[..., 0]
    return nll[:, -scored:].mean(1)


def test_all_lengths_end_in_the_same_tokens(documents):
    windows = context_windows(documents, LENGTHS, 5)
    assert list(windows) == [30, 64, 130]
    for length, rows in windows.items():
        assert rows.shape == (5, length)
        assert torch.equal(rows[:, -30:], windows[30])
    assert context_windows(documents, [], 5) == {}
    assert scored_tokens(LENGTHS) == 15 and scored_tokens([8192, 65536]) == 2048


def test_every_reading_begins_as_a_text_does(documents):
    windows = context_windows(Documents(documents, [7, 9]), LENGTHS, 3)
    assert all(rows[:, :2].tolist() == 3 * [[7, 9]] for rows in windows.values())
    assert torch.equal(windows[64][:, 2:], windows[130][:, -62:])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_is_the_dense_float64_loss(model, documents, small_chunks, batch_size):
    windows = context_windows(documents, LENGTHS, 4)
    lm = ChunkedCausalLM(model)
    options = {"native_window": 70, "beyond": True, "seed": 0, "batch_size": batch_size}
    got = context_losses(lm, windows, **options)
    wanted = {n: dense_loss(model, rows, 15) for n, rows in windows.items()}
    assert got["scored"] == 15 and got["windows"] == 4 and got["native"] == 64
    for length, losses in wanted.items():
        found = got["by_length"][str(length)]
        assert found["window_nll"] == pytest.approx(losses.tolist(), rel=1e-5)
        assert found["nll"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert got["gain"] == pytest.approx((wanted[64] - wanted[130]).mean().item(), abs=1e-6)
    low, high = got["gain_ci95"]
    assert low < got["gain"] < high


def test_the_original_is_not_read_beyond_its_window(model, documents):
    windows, lm = context_windows(documents, LENGTHS, 2), ChunkedCausalLM(model)
    options = {"seed": 0, "batch_size": 8}
    got = context_losses(lm, windows, native_window=70, beyond=False, **options)
    assert list(got["by_length"]) == ["30", "64"] and "gain" not in got
    none = context_losses(lm, windows, native_window=10, beyond=False, **options)
    assert none["by_length"] == {} and none["native"] is None


def test_the_gain_over_the_original_is_paired_by_window():
    views = {
        "original": {"context": {"native": 32, "by_length": {"32": {"window_nll": [2.0, 3.0]}}}},
        "restored": {
            "context": {
                "native": 32,
                "gain": 1.5,
                "by_length": {
                    "32": {"window_nll": [2.5, 3.5]},
                    "64": {"window_nll": [1.0, 2.0]},
                },
            }
        },
        "other": {},
    }
    compare_with_original(views, 0)
    assert views["restored"]["context"]["gain_over_original"] == pytest.approx(1.0)
    assert views["restored"]["context"]["gain_over_original_ci95"] is None  # the same in both
    assert "gain_over_original" not in views["original"]["context"] and views["other"] == {}


def test_in_an_evaluation(model, tokenizer, make_views, documents):
    config = EvaluationConfig(
        perplexity_windows=[],
        agreement_window=0,
        passkey_lengths=[],
        context_lengths=LENGTHS,
        context_windows=3,
    )
    views = make_views(model)
    result = evaluate(
        model,
        tokenizer,
        views,
        documents,
        config,
        progress=False,
        native_window=64,
        model_name="org/base",
    )
    assert result["meta"]["model"] == "org/base"
    original, restored = (result["views"][v]["context"] for v in ("original", "restored"))
    assert list(original["by_length"]) == ["30", "64"]
    assert restored["gain_over_original"] == pytest.approx(
        original["by_length"]["64"]["nll"] - restored["by_length"]["130"]["nll"]
    )
    rows = {row.label: row for row in summarise(result)}
    gain = rows["context gain, 64 to 130 tokens (nats)"]
    assert gain.values.keys() == {"stretched", "restored"} and not gain.lower_is_better
    loss = rows["loss of the same tokens, 130 read (nats)"]
    assert loss.lower_is_better and math.isclose(
        loss.values["original"], original["by_length"]["64"]["nll"]
    )
    with pytest.raises(DataError, match="at least 2000 tokens"):
        config.context_lengths = [2000]
        evaluate(model, tokenizer, views, documents, config, progress=False)
