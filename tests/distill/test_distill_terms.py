"""Further terms against dense float64: teacher inputs, hidden states, windows, skipped positions, recall."""

import dense
import pytest
import torch

import tiny
from linearard.data.repeated_passages import repeat_passages
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.distill.position_skips import draw_skip
from linearard.distill.windowed_teacher import windowed_hidden
from linearard.errors import DataError, ModelError, RecipeError
from linearard.model import ChunkedCausalLM

ALL = {"q": 1.0, "k": 0.5, "v": 2.0, "qk": 0.25}


def assert_close(got, expected, rtol=2e-5):
    torch.testing.assert_close(
        got.detach().double(), expected.detach().double(), rtol=rtol, atol=1e-9
    )


def student_on_teacher_inputs(restorable, ids, mask):
    """Operands of a whole pass of the student in which every attention reads the teacher's input."""
    modules, inputs, handles = restorable.tap.modules, {}, []

    def keep(module, args, kwargs):
        inputs[module.layer_idx] = kwargs["hidden_states"].detach()

    def replace(module, args, kwargs):
        return args, kwargs | {"hidden_states": inputs[module.layer_idx]}

    for hook, view in ((keep, "original"), (replace, "restored")):
        handles = [m.register_forward_pre_hook(hook, with_kwargs=True) for m in modules.values()]
        student, _ = dense.capture(restorable, view, ids, mask)
        for handle in handles:
            handle.remove()
    return student


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["lora", "direct"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "gemma3", "olmo2", "phi3"])
def test_teacher_inputs(architecture, kind, masked):
    restorable = tiny.tiny_restorable(architecture, kind=kind)
    tiny.perturb_adapter(restorable, size=0.1)
    ids, mask = tiny.tokens(2, 23), None
    if masked:
        mask = torch.ones_like(ids)
        mask[1, 17:] = 0
    settings = {"relations": ALL, "layers": [2, 0], "layer_weights": [1.0, 3.0]}
    module = RestorationModule(restorable, ObjectiveConfig(inputs="teacher", **settings)).train()
    out = module(ids, mask)
    with torch.no_grad():
        teacher, _ = dense.capture(restorable, "original", ids, mask)
    student = student_on_teacher_inputs(restorable, ids, mask)
    terms = dense.relation_terms(teacher, student, ALL, layer_weights={2: 1.0, 0: 3.0}, mask=mask)
    loss = sum(w * terms[f"relation_{name}"] for name, w in ALL.items())
    assert out.keys() == {"loss", *terms}
    for name, term in terms.items():
        assert_close(out[name], term)
        assert not out[name].requires_grad and term > 1e-3
    assert_close(out["loss"], loss)
    expected = dense.gradients(restorable, loss)
    # Twice the loss, half the gradient: what comes from behind the loss must reach the weights.
    dense.assert_same_gradients(
        dense.gradients(restorable, 0.5 * (2 * out["loss"])), expected, rtol=2e-4
    )
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3
    assert restorable.model.training and restorable.tap._observer is None


def test_teacher_inputs_run_dropout_in_the_student_alone():
    restorable = tiny.tiny_restorable(dropout=0.5)
    tiny.perturb_adapter(restorable)
    objective = ObjectiveConfig(relations=ALL, inputs="teacher")
    module, ids = RestorationModule(restorable, objective), tiny.tokens(2, 23)
    drawn = {float(module.train()(ids)["loss"].detach()) for _ in range(3)}
    kept = {float(module.eval()(ids)["loss"].detach()) for _ in range(3)}
    assert len(drawn) == 3 and len(kept) == 1


def test_teacher_inputs_under_autocast():
    restorable = tiny.tiny_restorable()
    tiny.perturb_adapter(restorable)
    module = RestorationModule(restorable, ObjectiveConfig(relations=ALL, inputs="teacher"))
    ids = tiny.tokens(2, 41)
    plain = module(ids)["loss"]
    expected = dense.gradients(restorable, plain)
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(ids)["loss"]
    assert_close(loss, plain, rtol=0.05)
    for name, gradient in dense.gradients(restorable, loss).items():
        same = torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0)
        assert same > 0.98, name


def test_teacher_inputs_without_gradients():
    restorable = tiny.tiny_restorable()
    tiny.perturb_adapter(restorable)
    module = RestorationModule(restorable, ObjectiveConfig(relations=ALL, inputs="teacher"))
    ids = tiny.tokens(2, 23)
    expected = module(ids)["loss"]
    with torch.no_grad():
        assert torch.equal(module(ids)["loss"], expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layers", [None, [1], [2, 0]])
def test_hidden_states(layers, masked):
    restorable = tiny.tiny_restorable()
    tiny.perturb_adapter(restorable)
    ids = tiny.tokens(3, 29)
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    mask = mask if masked else None
    objective = ObjectiveConfig(
        relations={"v": 1.0}, hidden_weight=0.7, hidden_layers=layers, layers=[0]
    )
    out = RestorationModule(restorable, objective)(ids, mask)
    states = {}
    for view in ("original", "restored"):
        with restorable.view(view) as model:
            outputs = collected(model, ids, mask)
        states[view] = [x.double() for x in outputs]
    total = 0.0
    for layer in layers or [0, 1, 2]:
        t, s = states["original"][layer].detach(), states["restored"][layer]
        rows = (s - t).square().sum(-1) / t.square().sum(-1)
        total = total + (rows.mean() if mask is None else rows[mask.bool()].mean())
    expected = total / len(layers or [0, 1, 2])
    assert_close(out["hidden"], expected)
    with torch.no_grad():
        teacher, _ = dense.capture(restorable, "original", ids, mask)
    student, _ = dense.capture(restorable, "restored", ids, mask)
    relation = dense.relation_terms(teacher, student, ["v"], layer_weights={0: 1.0}, mask=mask)
    loss = relation["relation_v"] + 0.7 * expected
    assert_close(out["loss"], loss)
    gradients = dense.gradients(restorable, loss)
    dense.assert_same_gradients(dense.gradients(restorable, out["loss"]), gradients, rtol=2e-4)


def collected(model, ids, mask):
    """Output of every layer, from hooks of its own."""
    layers, seen = model.get_decoder().layers, []
    handles = [layer.register_forward_hook(lambda m, a, out: seen.append(out)) for layer in layers]
    model(input_ids=ids, attention_mask=mask, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(("tokens", "window"), [(40, 16), (41, 16), (16, 16), (5, 16), (47, 10)])
def test_a_teacher_in_windows(tokens, window):
    """Every position from the window that shows the most before it: at least half of a window."""
    restorable = tiny.tiny_restorable()
    ids, half = tiny.tokens(2, tokens), window // 2
    language_model = ChunkedCausalLM(restorable.model)
    last = max(tokens - window, 0)
    with torch.no_grad(), restorable.view("original"):
        got = windowed_hidden(language_model, ids, window)
        for position in range(tokens):
            starts = [s for s in [*range(0, last, half), last] if s <= position < s + window]
            start = min(starts)
            assert position - start >= min(half, position)
            exact = language_model.hidden(ids[:, start : start + window])
            torch.testing.assert_close(
                got[:, position], exact[:, position - start], rtol=0, atol=1e-6
            )


def test_logit_kl_with_a_teacher_in_windows():
    restorable = tiny.tiny_restorable()
    tiny.perturb_adapter(restorable)
    ids = tiny.tokens(2, 40)
    objective = ObjectiveConfig(
        relations={}, logit_weight=1.0, logit_positions=40, teacher_window=16
    )
    out = RestorationModule(restorable, objective)(ids)
    language_model = ChunkedCausalLM(restorable.model)
    with torch.no_grad(), restorable.view("original"):
        hidden = windowed_hidden(language_model, ids, 16)
        teacher = language_model.logits(hidden.flatten(0, 1)).view(2, 40, -1)
    _, student = dense.capture(restorable, "restored", ids)
    assert_close(out["logit_kl"], dense.logit_kl(teacher, student, 40))


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_skipped_positions(architecture):
    """The student sees what explicit position ids would show it; the teacher reads without a gap."""
    restorable = tiny.tiny_restorable(architecture)
    tiny.perturb_adapter(restorable)
    ids = tiny.tokens(2, 31)
    objective = ObjectiveConfig(
        relations={}, logit_weight=1.0, logit_positions=31, skip_positions=True
    )
    module = RestorationModule(restorable, objective)
    torch.manual_seed(2)
    start, distance = draw_skip(31, restorable.rope.target_window)
    assert 8 <= start < 24 and distance > 10
    torch.manual_seed(2)
    out = module(ids)
    positions = torch.arange(31)
    positions = positions + distance * (positions >= start)
    with torch.no_grad():
        _, teacher = dense.capture(restorable, "original", ids)
    with restorable.view("restored") as model:
        # With a mask, transformers does not take the jump for the border of two packed texts.
        student = model(
            input_ids=ids, position_ids=positions[None], attention_mask=torch.ones_like(ids)
        ).logits
    assert_close(out["logit_kl"], dense.logit_kl(teacher, student, 31))
    _, usual = dense.capture(restorable, "restored", ids)
    other = dense.logit_kl(teacher, usual, 31).detach()
    assert float(other) != pytest.approx(float(out["logit_kl"]), rel=1e-3)


def test_layers_with_native_rotations_skip_nothing():
    """Layers of a sliding window never see as far as a jump: their positions stay consecutive."""
    restorable = tiny.tiny_restorable("gemma3")
    ids = tiny.tokens(1, 31)
    with torch.no_grad():
        plain, _ = dense.capture(restorable, "restored", ids)
        with restorable.rope.skipping(7, 50):
            moved, _ = dense.capture(restorable, "restored", ids)
    assert torch.equal(plain[0].key, moved[0].key)  # a sliding layer, before anything differs
    assert not torch.equal(plain[1].key[:, :, 7:], moved[1].key[:, :, 7:])
    assert torch.equal(plain[1].key[:, :, :7], moved[1].key[:, :, :7])


def test_skips_reach_the_whole_window():
    torch.manual_seed(0)
    drawn = [draw_skip(10, 100) for _ in range(2000)]
    assert {start for start, _ in drawn} == set(range(1, 10))
    assert {distance for _, distance in drawn} == set(range(91))
    assert draw_skip(10, 10)[1] == 0


def test_recall_takes_repeated_tokens_out_of_the_teachers_hands():
    restorable = tiny.tiny_restorable()
    tiny.perturb_adapter(restorable)
    ids = tiny.tokens(2, 40)
    repeated = torch.zeros(2, 40, dtype=torch.bool)
    repeated[0, 11:19] = repeated[1, 39] = repeated[1, 1] = True
    objective = ObjectiveConfig(
        relations={}, logit_weight=1.0, logit_positions=40, repeated_weight=0.5
    )
    out = RestorationModule(restorable, objective)(ids, repeated=repeated)
    with torch.no_grad():
        _, teacher = dense.capture(restorable, "original", ids)
    _, student = dense.capture(restorable, "restored", ids)
    log_t, log_s = teacher.double().log_softmax(-1), student.double().log_softmax(-1)
    rows = (log_t.exp() * (log_t - log_s)).sum(-1)
    told = torch.ones(2, 40, dtype=torch.bool)
    told[:, :-1] = ~repeated[:, 1:]
    recall = -log_s[:, :-1].gather(-1, ids[:, 1:, None])[..., 0][repeated[:, 1:]].mean()
    assert_close(out["logit_kl"], rows[told].mean())
    assert_close(out["recall"], recall)
    loss = rows[told].mean() + 0.5 * recall
    expected = dense.gradients(restorable, loss)
    dense.assert_same_gradients(dense.gradients(restorable, out["loss"]), expected, rtol=2e-4)


def test_recall_needs_to_be_told_what_repeats(restorable):
    module = RestorationModule(restorable, ObjectiveConfig(relations={}, repeated_weight=1.0))
    with pytest.raises(DataError, match=r"data\.repeated_passages"):
        module(tiny.tokens())


@pytest.mark.parametrize(("share", "seed"), [(0.3, 4), (0.1, 1), (0.5, 2), (0.5, 3)])
def test_recalled_tokens_stood_before(share, seed):
    """Whatever is marked is foretold by an earlier copy of the tokens before it."""
    import numpy as np

    ids = np.random.default_rng(1).integers(0, 50_000, 600)
    text, marked = repeat_passages(ids, share, seed)
    assert share / 3 < marked.mean() < 1.4 * share and not marked[:12].any()
    for place in np.flatnonzero(marked):
        cue = text[place - 4 : place]
        copies = [p for p in range(4, place) if np.array_equal(text[p - 4 : p], cue)]
        assert text[place] in text[copies]
    again, _ = repeat_passages(ids, share, seed)
    other, _ = repeat_passages(ids, share, seed + 10)
    assert np.array_equal(text, again) and not np.array_equal(text, other)


def test_the_opening_of_a_window_comes_back():
    """A tenth of the passages would come from the first fiftieth of the window if drawn evenly."""
    import numpy as np

    ids = np.arange(20_000)
    text, marked = repeat_passages(ids, 0.2, 0)
    # A token is its own position but where it repeats one: shuffling moves it by less than a passage.
    share = (text[marked] < len(ids) // 50).mean()
    assert 0.2 < share < 0.5
    text, marked = repeat_passages(ids, 0.2, 0, opening=4)
    nearer = (text[marked] < len(ids) // 50).mean()
    assert share + 0.1 < nearer < 0.7


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"inputs": "students"}, "inputs"),
        ({"inputs": "teacher", "logit_weight": 1}, "inputs"),
        ({"inputs": "teacher", "relations": {}, "lm_weight": 1}, "inputs"),
        ({"teacher_window": 15, "relations": {}, "logit_weight": 1}, "teacher_window"),
        ({"teacher_window": 16, "logit_weight": 1}, "teacher_window"),
        ({"teacher_window": 16, "relations": {}, "lm_weight": 1}, "teacher_window"),
        ({"skip_positions": 1}, "skip_positions"),
        ({"skip_positions": True, "lm_weight": 1}, "skip_positions"),
        ({"skip_positions": True, "relations": {}, "lm_weight": 1}, "skip_positions"),
        ({"hidden_weight": 1, "hidden_layers": [1, 1]}, "hidden_layers"),
        ({"repeated_weight": -1}, "repeated_weight"),
    ],
)
def test_settings_that_cannot_be(settings, name):
    with pytest.raises(RecipeError, match=f"objective.{name}"):
        ObjectiveConfig(**settings)


def test_layers_counted_from_the_end():
    objective = ObjectiveConfig(hidden_weight=1, hidden_layers=[-1, 0], layers=[-1, -3])
    assert objective.compared_layers(3) == [0, 2]
    assert objective.weights_by_layer(3) == {2: 0.5, 0: 0.5}
    assert objective.weights_by_layer(4) == {3: 0.5, 1: 0.5}
    for layers in ([-4], [3], [2, -1]):
        with pytest.raises(RecipeError, match=r"objective\.hidden_layers"):
            ObjectiveConfig(hidden_weight=1, hidden_layers=layers).compared_layers(3)


def test_hidden_layers_the_model_does_not_have(restorable):
    with pytest.raises(RecipeError, match=r"objective\.hidden_layers"):
        RestorationModule(restorable, ObjectiveConfig(hidden_weight=1, hidden_layers=[3]))


def test_layers_that_cannot_be_seen():
    """As those of a model of somebody's own code, which is no GradientCheckpointingLayer."""
    restorable = tiny.tiny_restorable()
    del restorable.layers.layers[1]
    with pytest.raises(ModelError, match=r"layers \[1\]"):
        RestorationModule(restorable, ObjectiveConfig(hidden_weight=1))
    RestorationModule(restorable, ObjectiveConfig(hidden_weight=1, hidden_layers=[0, 2]))


def test_a_trained_head_is_refused():
    restorable = tiny.tiny_restorable(target_modules=["q_proj", "lm_head"])
    with pytest.raises(RecipeError, match="frozen LM head"):
        RestorationModule(restorable, ObjectiveConfig(logit_weight=1.0))
