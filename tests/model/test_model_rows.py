"""Tokens that were added to a tokenizer get rows, the same in every run, through checkpoint and export."""

import pytest
import torch

import tiny
from linearard.errors import ModelError
from linearard.export import export_model
from linearard.model import (
    AdapterConfig,
    ModelConfig,
    RestorableModel,
    load_model,
    load_restored,
    save_checkpoint,
)

ADDED = ["<tool>", "</tool>", "<think>"]


@pytest.fixture(params=[False, True], ids=["apart", "tied"])
def base(request, tmp_path):
    folder = tiny.save_tiny_base(tmp_path / "base", tie_word_embeddings=request.param)
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.add_tokens(ADDED)
    tokenizer.save_pretrained(folder)
    return folder


def config(base, **changes):
    return ModelConfig(name=str(base), dtype="float32", device="cpu", **changes)


def test_without_a_word_they_are_refused(base):
    with pytest.raises(ModelError, match="resize_embeddings"):
        load_model(config(base))


def test_a_new_row_is_the_mean_of_the_others(base):
    model, tokenizer = load_model(config(base, resize_embeddings=True))
    assert len(tokenizer) == tiny.VOCAB + 3 == model.config.vocab_size
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert len(part.weight) == tiny.VOCAB + 3
        mean = part.weight[: tiny.VOCAB].double().mean(0).float()
        torch.testing.assert_close(part.weight[tiny.VOCAB :], mean.expand(3, -1))
    ids = tokenizer("a <tool> b", return_tensors="pt").input_ids
    assert ids.max() >= tiny.VOCAB
    again, _ = load_model(config(base, resize_embeddings=True))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        assert torch.isfinite(logits).all()
        assert torch.equal(logits, again(input_ids=ids).logits)


def test_a_tokenizer_that_fits_changes_nothing(tmp_path):
    folder = tiny.save_tiny_base(tmp_path / "base")
    model, _ = load_model(config(folder, resize_embeddings=True))
    assert model.config.vocab_size == tiny.VOCAB


def test_checkpoints_and_exports_have_them_too(base, tmp_path):
    adapter = AdapterConfig(r=4, alpha=8.0, dropout=0.0)
    restorable = RestorableModel.load(config(base, resize_embeddings=True), tiny.LINEAR, adapter)
    tiny.perturb_adapter(restorable)
    ids = torch.tensor([[1, 2, tiny.VOCAB, 3, tiny.VOCAB + 2]])
    with torch.no_grad():
        expected = restorable.model(input_ids=ids).logits
    save_checkpoint(restorable, tmp_path / "checkpoint")
    read = load_restored(tmp_path / "checkpoint", dtype="float32", device="cpu")
    with torch.no_grad():
        assert torch.equal(read.model(input_ids=ids).logits, expected)
    export_model(restorable, tmp_path / "exported")
    merged, _ = load_model(config(tmp_path / "exported"))
    with torch.no_grad():
        got = merged(input_ids=ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
