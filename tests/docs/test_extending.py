"""The worked examples of docs/how-to/extending.md run, and do what the page says."""

import re
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import tiny
from linearard.counting import ModelShape, Step, step_products
from linearard.data import Documents, beginning
from linearard.distill import RestorationModule, step_shares
from linearard.distill.output_terms import OUTPUT_TERMS
from linearard.evaluation import evaluate, summarise
from linearard.evaluation.measures import MEASURES
from linearard.evaluation.windows import cut_windows
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
