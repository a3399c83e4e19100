"""The worked examples of docs/how-to/extending.md run, and do what the page says."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import tiny
from linearard import architectures
from linearard.capture import needs_no_mask
from linearard.counting import ModelShape, Step, step_products
from linearard.data import Documents, beginning
from linearard.distill import ObjectiveConfig, RestorationModule, step_shares
from linearard.distill.output_terms import OUTPUT_TERMS
from linearard.evaluation import evaluate, summarise
from linearard.evaluation.measures import MEASURES
from linearard.evaluation.windows import cut_windows
from linearard.export.representation import exported_rope
from linearard.planning.memory_traffic import step_traffic

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "extending.md"


def example(heading):
    """The names that the Python of a section of the page defines."""
    section = PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    names = {}
    for code in re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), names)
    return names


@pytest.fixture
def term(monkeypatch):
    kept = list(OUTPUT_TERMS)
    yield example("A term of the loss on the output")
    OUTPUT_TERMS[:] = kept


def test_a_term_is_trained_counted_and_planned(term):
    objective, restorable = term["objective"], tiny.tiny_restorable()
    assert objective.weights == {"lm": 1.0, "z": 1e-4}
    ids = torch.randint(0, tiny.VOCAB, (2, 24), generator=torch.Generator().manual_seed(0))
    module = RestorationModule(restorable, {"": objective}).eval()
    found = module(ids)
    with torch.no_grad(), restorable.view("restored"):
        logits = restorable.model(ids).logits.double()
    z = logits.logsumexp(-1).square().mean()
    assert_close(found["z"].double(), z, rtol=1e-5, atol=0)
    assert_close(found["loss"].double(), found["lm"].double() + 1e-4 * z, rtol=1e-5, atol=0)

    (shares,) = step_shares({"": objective}, [{"input_ids": ids}])
    assert shares.tolist() == [1.0, 1.0]

    plain = type(objective)(relations={}, lm_weight=1.0)
    shape = ModelShape.of(restorable.config, restorable.adapter.config)
    rows = {}
    for one in (plain, objective):
        products = step_products(Step(shape, one, 24, 2, native_window=64))
        heads = [p for p in products if p.kind == "head"]
        rows[len(one.weights)] = sum(p.rows for p in heads if p.phase == "student")
    assert (rows[1], rows[2]) == (2 * 23, 2 * 23 + 2 * 24)
    more, less = (step_traffic(Step(shape, one, 24, 2, 64)) for one in (objective, plain))
    assert more["student"] > less["student"]


@pytest.fixture
def metric():
    kept = list(MEASURES)
    yield example("A metric")
    MEASURES[:] = kept


def test_a_metric_is_prepared_measured_and_told(metric):
    restorable = tiny.tiny_restorable()
    draw = torch.Generator().manual_seed(1)
    documents = [torch.randint(0, tiny.VOCAB, (200,), generator=draw)]
    result = evaluate(
        restorable.model,
        restorable.tokenizer,
        restorable.views(),
        documents,
        metric["config"],
        progress=False,
    )
    (row,) = summarise(result)
    assert (row.label, row.group) == ("entropy (nats)", "held-out text")
    assert row.values.keys() == {"original", "stretched", "restored"}
    windows = cut_windows(Documents(documents, beginning(restorable.tokenizer)), 48, 192)
    with torch.no_grad(), restorable.view("original"):
        chances = restorable.model.eval()(windows).logits.double().softmax(-1)
    assert row.values["original"] == pytest.approx(
        -(chances * chances.log()).sum(-1).mean().item(), rel=1e-5
    )


def test_a_scaling_is_a_table_of_its_frequencies(tmp_path):
    made = example("A scaling")
    config = tiny.tiny_config()
    scaling = made["scaling"](config, 8.0, tmp_path / "frequencies.json")
    restorable = tiny.tiny_restorable(scaling=scaling)
    width = config.hidden_size // config.num_attention_heads
    expected = []
    for pair in range(width // 2):
        plain = config.rope_parameters["rope_theta"] ** (-2 * pair / width)
        turns = plain * config.max_position_embeddings / (2 * math.pi)
        expected.append(plain / 8 if turns < 1 else plain)
    live = restorable.rope.tables("stretched")[""]
    assert live.inv_freq.tolist() == pytest.approx(expected, rel=1e-6)
    native = restorable.rope.tables("native")[""].inv_freq
    assert 0 < int((live.inv_freq == native).sum()) < width // 2
    assert restorable.rope.target_window == 8 * config.max_position_embeddings
    exported = exported_rope(restorable.rope, "llama")
    theta = exported["rope_theta"]
    read = [theta ** (-2 * i / width) / f for i, f in enumerate(exported["long_factor"])]
    assert read == pytest.approx(expected, rel=1e-6)


def granite():
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "vocab_size": tiny.VOCAB,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_multiplier": 0.3}
    return GraniteForCausalLM(GraniteConfig(**sizes, **heads, max_position_embeddings=64))


def test_an_architecture_is_fused_and_reads_whole_windows_without_masks(monkeypatch):
    ids, losses = tiny.tokens(2, 41), {}
    for known in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(architectures, "ARCHITECTURES", dict(architectures.ARCHITECTURES))
            if known:
                example("An architecture")
            restorable = tiny.tiny_restorable(model=granite())
            assert restorable.fused.counts == ({"norm": 7, "mlp": 3} if known else {})
            assert needs_no_mask(restorable.model) is known
            restorable.fused.everywhere = True
            module = RestorationModule(restorable, {"": ObjectiveConfig(lm_weight=1.0)}).train()
            losses[known] = module(ids)["loss"]
            losses[known].backward()
            gradient = restorable.adapter.parameters()[0].grad
            losses[known] = torch.stack((losses[known].detach(), gradient.norm()))
    assert_close(losses[True], losses[False], rtol=2e-5, atol=0)
