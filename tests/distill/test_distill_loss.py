"""The loss of a step and its gradients against dense float64."""

import dense
import pytest
import torch

import tiny
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.errors import RecipeError

ALL = {"q": 1.0, "k": 0.5, "v": 2.0, "qk": 0.25}


def padded(batch=3, length=41):
    """Token ids and an attention mask with rows of different length."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[1, 29:] = 0
    mask[2, 3:] = 0
    return tiny.tokens(batch, length), mask


def student_and_teacher(restorable, ids, mask=None):
    with torch.no_grad():
        teacher, teacher_logits = dense.capture(restorable, "original", ids, mask)
    student, student_logits = dense.capture(restorable, "restored", ids, mask)
    return teacher, student, teacher_logits, student_logits


def assert_close(got, expected, rtol=2e-5):
    torch.testing.assert_close(
        got.detach().double(), expected.detach().double(), rtol=rtol, atol=1e-9
    )


CASES = {
    "paper": {"relations": {"q": 1.0, "k": 1.0, "v": 1.0}},
    "weights": {"relations": ALL},
    "one relation": {"relations": {"k": 3.0, "q": 0.0}},
    "qk alone": {"relations": {"qk": 1.0}},
    "paper's normalisation": {"relations": ALL, "normalisation": "paper"},
    "temperature": {"relations": ALL, "temperature": 2.5},
    "two layers": {"relations": ALL, "layers": [2, 0]},
    "first layer": {"relations": ALL, "layers": [0]},
    "layer weights": {"relations": ALL, "layer_weights": [1.0, 0.0, 3.0]},
    "weights of two layers": {"relations": ALL, "layers": [1, 0], "layer_weights": [0.2, 0.6]},
    "dense implementation": {"relations": ALL, "implementation": "reference"},
    "chunked implementation": {"relations": ALL, "implementation": "chunked"},
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_relation_loss_and_gradients(case, masked):
    settings = CASES[case]
    restorable = tiny.tiny_restorable()
    tiny.perturb_adapter(restorable)
    ids, mask = padded() if masked else (tiny.tokens(2, 41), None)
    out = RestorationModule(restorable, ObjectiveConfig(**settings))(ids, mask)

    layers = settings.get("layers") or [0, 1, 2]
    weights = dict(zip(layers, settings.get("layer_weights") or [1.0] * 3, strict=False))
    active = {name: w for name, w in settings["relations"].items() if w}
    teacher, student, _, _ = student_and_teacher(restorable, ids, mask)
    terms = dense.relation_terms(
        teacher,
        student,
        active,
        layer_weights=weights,
        temperature=settings.get("temperature", 1.0),
        mask=mask,
        normalisation=settings.get("normalisation", "own"),
    )
    loss = sum(w * terms[f"relation_{name}"] for name, w in active.items())
    assert out.keys() == {"loss", *terms}
    for name, term in terms.items():
        assert_close(out[name], term)
        assert not out[name].requires_grad and term > 0.01  # the case has something to measure
    assert_close(out["loss"], loss)
    expected = dense.gradients(restorable, loss)
    dense.assert_same_gradients(dense.gradients(restorable, out["loss"]), expected)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3


@pytest.mark.parametrize("kind", ["lora", "direct"])
@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "gemma3", "olmo2", "phi3", "mistral"])
def test_relation_loss_of_other_architectures(architecture, kind):
    restorable = tiny.tiny_restorable(architecture, kind=kind)
    tiny.perturb_adapter(restorable, size=0.1)
    ids = tiny.tokens(2, 23)
    out = RestorationModule(restorable, ObjectiveConfig(relations=ALL))(ids)
    teacher, student, _, _ = student_and_teacher(restorable, ids)
    terms = dense.relation_terms(teacher, student, ALL)
    loss = sum(w * terms[f"relation_{name}"] for name, w in ALL.items())
    assert_close(out["loss"], loss)
    expected = dense.gradients(restorable, loss)
    dense.assert_same_gradients(dense.gradients(restorable, out["loss"]), expected, rtol=2e-4)


@pytest.mark.parametrize("architecture", ["mistral", "gemma3"])
def test_relations_of_a_sliding_window(architecture):
    """Layers of a sliding window compare what their attention sees, the others all there is."""
    restorable = tiny.tiny_restorable(architecture)
    tiny.perturb_adapter(restorable, size=0.1)
    ids, mask = padded()
    out = RestorationModule(restorable, ObjectiveConfig(relations=ALL))(ids, mask)
    teacher, student, _, _ = student_and_teacher(restorable, ids, mask)
    windows = {attention.sliding_window for attention in student}
    assert windows == ({24, None} if architecture == "gemma3" else {24})
    terms = dense.relation_terms(teacher, student, ALL, mask=mask)
    loss = sum(w * terms[f"relation_{name}"] for name, w in ALL.items())
    assert_close(out["loss"], loss)
    expected = dense.gradients(restorable, loss)
    dense.assert_same_gradients(dense.gradients(restorable, out["loss"]), expected, rtol=2e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("positions", [7, 41, 1000, None])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])  # gemma2 caps its logits
def test_output_losses(architecture, positions, masked, monkeypatch):
    from linearard.model import causal_lm

    monkeypatch.setattr(causal_lm, "LOGIT_ELEMENTS", 11 * tiny.VOCAB)  # several chunks
    restorable = tiny.tiny_restorable(architecture)
    tiny.perturb_adapter(restorable)
    ids, mask = padded() if masked else (tiny.tokens(2, 41), None)
    objective = ObjectiveConfig(
        relations={"v": 1.0}, logit_weight=0.7, logit_positions=positions, lm_weight=0.3
    )
    out = RestorationModule(restorable, objective)(ids, mask)
    teacher, student, teacher_logits, student_logits = student_and_teacher(restorable, ids, mask)
    relation = dense.relation_terms(teacher, student, ["v"], mask=mask)["relation_v"]
    kl = dense.logit_kl(teacher_logits, student_logits, positions or 41, mask)
    lm = dense.next_token(student_logits, ids, mask)
    assert_close(out["logit_kl"], kl)
    assert_close(out["lm"], lm)
    loss = relation + 0.7 * kl + 0.3 * lm
    assert_close(out["loss"], loss)
    expected = dense.gradients(restorable, loss)
    dense.assert_same_gradients(dense.gradients(restorable, out["loss"]), expected, rtol=2e-4)


def test_language_model_loss_is_the_models_own(restorable):
    ids = tiny.tokens(2, 41)
    out = RestorationModule(restorable, ObjectiveConfig(relations={}, lm_weight=2.0))(ids)
    with torch.no_grad():
        expected = restorable.model(input_ids=ids, labels=ids).loss
    assert_close(out["lm"], expected)
    assert_close(out["loss"], 2 * expected)
    assert out.keys() == {"loss", "lm"}


def test_padding_on_the_right_changes_nothing(restorable):
    """A padded batch gives the token-weighted mean of its rows, whatever the padding holds."""
    tiny.perturb_adapter(restorable)
    ids, mask = padded()
    objective = ObjectiveConfig(relations=ALL, lm_weight=1.0, logit_weight=1.0)
    module = RestorationModule(restorable, objective)
    with torch.no_grad():
        batch = module(ids, mask)
        other = module(ids.masked_fill(mask == 0, 9), mask)
        rows = [module(ids[i : i + 1, : int(mask[i].sum())]) for i in range(3)]
    lengths = mask.sum(1).double()
    for name in batch:
        if name == "loss":
            continue
        counts = lengths - 1 if name == "lm" else lengths
        mean = (
            sum(n * row[name].double() for n, row in zip(counts, rows, strict=True)) / counts.sum()
        )
        assert_close(batch[name], mean, rtol=1e-4)
        assert_close(other[name], batch[name], rtol=1e-6)


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_identical_teacher_and_student_give_exactly_zero(restorable, implementation):
    tiny.perturb_adapter(restorable)
    objective = ObjectiveConfig(relations=ALL, logit_weight=1.0, implementation=implementation)
    ids, mask = padded()
    with torch.no_grad(), restorable.view("original"):
        out = RestorationModule(restorable, objective)(ids, mask)
    assert {name: float(term) for name, term in out.items()} == dict.fromkeys(out, 0.0)


def test_the_teacher_has_no_dropout_and_no_gradient():
    restorable = tiny.tiny_restorable(dropout=0.5, changes={"attention_dropout": 0.3})
    restorable.model.train()
    module = RestorationModule(restorable, ObjectiveConfig(relations={"v": 1.0}))
    seen = {}
    original = type(restorable.tap).observing

    def observing(tap, observer, **options):
        if observer is not None:
            seen.setdefault(type(observer).__name__, observer)
        return original(tap, observer, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(restorable.tap), "observing", observing)
        module(tiny.tokens())
    assert restorable.model.training and all(m.training for m in restorable.model.modules())
    teacher = seen["TeacherRelations"]
    restorable.model.eval()
    with torch.no_grad():
        expected, _ = dense.capture(restorable, "original", tiny.tokens())
    for attention in expected:
        kept = teacher.of(attention.layer)
        assert torch.equal(kept["value"], attention.value)
        assert kept.keys() == {"value"}  # what no relation reads is not kept
        assert not kept["value"].requires_grad


def test_autocast_reaches_every_weight(restorable):
    """The teacher's pass runs first, without gradients, in the same autocast region."""
    tiny.perturb_adapter(restorable)
    ids = tiny.tokens(2, 41)
    module = RestorationModule(restorable, ObjectiveConfig(relations=ALL, lm_weight=1.0))
    plain = module(ids)
    expected = dense.gradients(restorable, plain["loss"])
    with torch.autocast("cpu", torch.bfloat16):
        out = module(ids)
    assert_close(out["loss"], plain["loss"], rtol=0.05)
    got = dense.gradients(restorable, out["loss"])
    for name, gradient in expected.items():
        assert torch.cosine_similarity(got[name].flatten(), gradient.flatten(), dim=0) > 0.98, name


@pytest.mark.parametrize(
    "settings", [{"layers": [3]}, {"layers": [-4, 0]}, {"layer_weights": [1.0, 1.0]}]
)
def test_layers_the_model_does_not_have(restorable, settings):
    with pytest.raises(RecipeError, match=f"objective.{next(iter(settings))}"):
        RestorationModule(restorable, ObjectiveConfig(**settings))
