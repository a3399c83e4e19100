from dataclasses import replace

import pytest
import torch

from linearard.data import DataConfig
from linearard.errors import DataError, RecipeError
from linearard.evaluation import EvaluationConfig, evaluate, read_texts, summarise

WINDOW = 48


@pytest.fixture
def sources(tmp_path):
    """Training text, and a folder of source files each shorter than a window."""
    (tmp_path / "train.txt").write_text("Rain had fallen in the night. " * 40)
    (tmp_path / "code").mkdir()
    for number in range(60):
        (tmp_path / "code" / f"{number:02}.py").write_text(f"x{number} = {number}\n")
    (tmp_path / "code" / "__init__.py").touch()
    (tmp_path / "notes.rst").write_text("The clock in the square had stopped. " * 30)
    return DataConfig(train=str(tmp_path / "train.txt"), cache_dir=str(tmp_path / "cache"))


def settings(tmp_path, **options):
    texts = {"code": str(tmp_path / "code"), "notes": str(tmp_path / "notes.rst")}
    return EvaluationConfig(
        **{
            "perplexity_windows": [],
            "passkey_lengths": [],
            "agreement_window": WINDOW,
            "agreement_tokens": 2 * WINDOW,
            "texts": texts,
            "texts_tokens": 5 * WINDOW,
            **options,
        }
    )


def test_short_files_are_joined_into_windows(sources, tmp_path, byte_tokenizer):
    texts = read_texts(settings(tmp_path), sources, byte_tokenizer).short
    assert {name: tuple(windows.shape) for name, windows in texts.items()} == {
        "code": (5, WINDOW),
        "notes": (5, WINDOW),
    }
    end, start = byte_tokenizer.eos_token_id, byte_tokenizer.bos_token_id
    assert (texts["code"][:, 0] == start).all() and (texts["code"][:, 1:] == end).any()
    for window in texts["code"]:
        files = byte_tokenizer.decode(window[1:]).split("</s>")
        assert all(line.startswith("x") and line.endswith("\n") for line in files[1:-1])
    assert len({tuple(window.tolist()) for window in texts["code"]}) == 5
    again = read_texts(settings(tmp_path), sources, byte_tokenizer).short
    assert all(torch.equal(again[name], texts[name]) for name in texts)


def test_what_training_adds_is_not_read(sources, tmp_path, byte_tokenizer):
    plain = read_texts(settings(tmp_path), sources, byte_tokenizer).short
    changed = replace(sources, repeated_passages=0.3, max_documents=1, pack=True)
    again = read_texts(settings(tmp_path), changed, byte_tokenizer).short
    assert all(torch.equal(again[name], plain[name]) for name in plain)


def test_trained_missing_and_short_text_is_refused_by_name(sources, tmp_path, byte_tokenizer):
    def refused(source, match, **options):
        with pytest.raises(DataError, match=match) as error:
            read_texts(
                settings(tmp_path, texts={"mine": source}, **options), sources, byte_tokenizer
            )
        assert "evaluation.texts.mine" in str(error.value)

    refused(sources.train, "not trained on")
    refused(str(tmp_path / "absent.py"), "an existing file")
    refused(str(tmp_path / "code"), "texts_tokens", texts_tokens=100_000)


def test_texts_need_a_window():
    with pytest.raises(RecipeError, match="agreement_window to be at least 2"):
        EvaluationConfig(texts={"code": "x.py"}, agreement_window=0)


def reference(model, views, windows):
    """Float64: nats per token of each view, and the KL from the original per token."""
    log_p = {}
    for name, view in views.items():
        with view(), torch.no_grad():
            log_p[name] = model(windows).logits.double().log_softmax(-1)
    nll = {
        name: -p[:, :-1].gather(2, windows[:, 1:, None]).mean().item() for name, p in log_p.items()
    }
    first = log_p["original"]
    kl = {name: (first.exp() * (first - p)).sum(-1).mean().item() for name, p in log_p.items()}
    return nll, kl


def test_every_view_is_measured_on_every_text(
    model, byte_tokenizer, make_views, documents, sources, tmp_path
):
    config = settings(tmp_path)
    texts = read_texts(config, sources, byte_tokenizer)
    views = make_views(model)
    result = evaluate(model, byte_tokenizer, views, documents, config, texts=texts, progress=False)
    for text, windows in texts.short.items():
        nll, kl = reference(model, views, windows)
        for name, part in result["views"].items():
            measured = part["texts"][text]
            assert measured["ppl"] == pytest.approx(torch.tensor(nll[name]).exp().item(), rel=1e-4)
            assert measured["tokens"] == 5 * (WINDOW - 1) and measured["ppl_ci95"]
            assert ("agreement" in measured) is (name != "original")
            if name != "original":
                assert measured["agreement"]["kl"] == pytest.approx(kl[name], rel=1e-4)
                assert set(measured["agreement"]) == {
                    "kl", "kl_ci95", "top1", "top1_ci95", "windows", "tokens", "by_position",
                }  # fmt: skip
                buckets = measured["agreement"]["by_position"]
                total = sum(b["kl"] * (b["end"] - b["start"]) for b in buckets)
                assert total / buckets[-1]["end"] == pytest.approx(kl[name], rel=1e-4)


def test_a_named_text_must_be_given(model, tokenizer, make_views, documents, tmp_path):
    model.forward = model.model.forward = None
    with pytest.raises(DataError, match="read_texts"):
        evaluate(model, tokenizer, make_views(model), documents, settings(tmp_path))


def test_texts_are_read_with_growing_context(
    model, byte_tokenizer, make_views, documents, sources, tmp_path
):
    """The same last tokens after 24 and 96 tokens, of windows that begin as a text does."""
    code = {"code": str(tmp_path / "code")}
    options = {"context_lengths": [96, 24], "context_windows": 3, "context_texts": code}
    config = settings(tmp_path, texts={}, agreement_window=0, **options)
    texts = read_texts(config, sources, byte_tokenizer)
    assert not texts.short and tuple(texts.long["code"].shape) == (3, 96)
    views = make_views(model)
    options = {"texts": texts, "progress": False, "native_window": 48}
    result = evaluate(model, byte_tokenizer, views, documents, config, **options)
    start = texts.long["code"][:, :1]
    assert (start == byte_tokenizer.bos_token_id).all()
    nll = {}
    for name, view in views.items():
        for length in (24, 96):
            read = torch.cat([start, texts.long["code"][:, 96 - length + 1 :]], 1)
            with view(), torch.no_grad():
                log_p = model(read).logits.double().log_softmax(-1)
            picked = log_p[:, :-1].gather(2, read[:, 1:, None])[..., 0]
            nll[name, length] = -picked[:, -12:].mean().item()
    for name, part in result["views"].items():
        found = part["context_texts"]["code"]
        read = [24] if name == "original" else [24, 96]
        assert [int(length) for length in found["by_length"]] == read and found["scored"] == 12
        for length in read:
            got = found["by_length"][str(length)]["nll"]
            assert got == pytest.approx(nll[name, length], rel=1e-4)
        if name != "original":
            gain = nll["original", 24] - nll[name, 96]
            assert found["gain_over_original"] == pytest.approx(gain, abs=1e-4)
    rows = {row.label: row for row in summarise(result)}
    assert rows["code: loss of the same tokens, 96 read (nats)"].kind == "loss"
    assert rows["code: context gain, 24 to 96 tokens (nats)"].values.keys() == views.keys() - {
        "original"
    }


def test_long_texts_need_lengths_and_are_refused_by_name(sources, tmp_path, byte_tokenizer):
    with pytest.raises(RecipeError, match="context_texts to be empty without context_lengths"):
        EvaluationConfig(context_texts={"code": "x.py"})
    options = {"context_lengths": [90_000], "context_texts": {"code": str(tmp_path / "code")}}
    with pytest.raises(DataError, match=r"evaluation\.context_texts\.code.*context_windows"):
        read_texts(settings(tmp_path, texts={}, **options), sources, byte_tokenizer)
