"""Fused layers against the models' own code, and their gradients against autograd in float64."""

import pytest
import torch
from torch import nn

import tiny
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.model.fused import fuse_layers
from linearard.model.fused.layers import gated_mlp, norm
from linearard.model.fused.projections import LowRank, base_outputs, project

#: Architectures with fused parts, and how many modules of three layers are fused.
FUSED = {
    "llama": 13,
    "mistral": 13,
    "qwen2": 13,
    "qwen3": 16,
    "olmo2": 16,
    "phi3": 7,
    "gemma": 7,
    "gemma2": 13,
    "gemma3": 19,
}
#: Norms among them, where not 7; those whose MLPs and projections are fused, too.
NORMS = {"qwen3": 13, "olmo2": 13, "gemma2": 13, "gemma3": 19}
WITH_MLPS = ("llama", "mistral", "qwen2", "qwen3", "olmo2")
WITH_PROJECTIONS = ("llama", "mistral", "qwen2")
OBJECTIVE = {
    "relations": {"q": 1.0, "k": 1.0, "v": 1.0, "qk": 1.0},
    "logit_weight": 0.5,
    "lm_weight": 0.5,
}


def restorable(architecture, *, fused, dtype=torch.float32, **adapter):
    made = tiny.tiny_restorable(architecture, **adapter)
    tiny.perturb_adapter(made)
    made.fused.everywhere = fused
    for parameter in made.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    for name, buffer in made.model.named_buffers():
        if "original_" in name and "inv_freq" not in name:
            buffer.data = buffer.data.to(dtype)
    return made


def count_fused_calls(monkeypatch):
    """How often each fused step runs."""
    from linearard.model.fused import install

    calls = {"norm": 0, "gated_mlp": 0, "project": 0}
    for name in calls:
        step = getattr(install, name)

        def counting(*args, name=name, step=step, **kwargs):
            calls[name] += 1
            return step(*args, **kwargs)

        monkeypatch.setattr(install, name, counting)
    return calls


def module_for(made, *, recompute=False, **objective):
    module = RestorationModule(made, ObjectiveConfig(**(objective or OBJECTIVE))).train()
    if recompute:
        module.gradient_checkpointing_enable()
    return module


def step(module, ids, mask=None, *, autocast=False):
    made = module.restorable
    with made.tap.step():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = module(ids, mask)
        out["loss"].backward()
    gradients = {name: p.grad for name, p in made.model.named_parameters() if p.requires_grad}
    return {name: float(term.detach()) for name, term in out.items()}, gradients


@pytest.mark.parametrize("architecture", FUSED)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["lora", "direct"])
def test_a_step_is_the_same(architecture, recompute, kind, monkeypatch):
    ids = tiny.tokens(2, 41)
    mask = torch.ones_like(ids)
    mask[1, 29:] = 0
    terms, expected = step(module_for(restorable(architecture, fused=False, kind=kind)), ids, mask)
    made = restorable(architecture, fused=True, kind=kind)
    module = module_for(made, recompute=recompute)
    calls = count_fused_calls(monkeypatch)
    got, gradients = step(module, ids, mask)
    assert got == pytest.approx(terms, rel=2e-5)
    for name, gradient in expected.items():
        error = (gradients[name] - gradient).norm() / gradient.norm()
        assert gradients[name].dtype == torch.float32
        assert error < 1e-4, (name, float(error))
    assert len(made.fused.modules) == FUSED[architecture]
    runs = 3 if recompute else 2
    # The final norm is never recomputed, nor one that ends a layer: nothing reads what it gives.
    norms, last = NORMS.get(architecture, 7), architecture in ("olmo2", "gemma2", "gemma3")
    counted = calls.pop("norm")
    assert counted in {runs * (norms - 1) + 2, runs * (norms - 1) + 2 - 3 * (recompute and last)}
    assert calls == {
        "gated_mlp": 3 * runs * (architecture in WITH_MLPS),
        "project": 3 * runs * (architecture in WITH_PROJECTIONS),
    }


@pytest.mark.parametrize("relations", [{"qk": 1.0}, {"qk": 1.0, "v": 0.5}, {"q": 1.0, "k": 2.0}])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["lora", "direct"])
def test_teacher_inputs_share_the_projections(architecture, relations, kind, monkeypatch):
    ids = tiny.tokens(2, 41)
    objective = {"relations": relations, "inputs": "teacher", "layers": [2, 1]}
    terms, expected = step(
        module_for(restorable(architecture, fused=False, kind=kind), **objective), ids
    )
    module = module_for(restorable(architecture, fused=True, kind=kind), **objective)
    from linearard.model.fused import install

    bases, project_plainly = [], install.project

    def seeing(*args):
        if len(args) < 7:  # layer 0, which the teacher alone runs
            return project_plainly(*args)
        bases.append("".join(n for n, y in zip("qkv", args[6], strict=True) if y is not None))
        return project_plainly(*args)

    monkeypatch.setattr(install, "project", seeing)
    got, gradients = step(module, ids)
    assert got == pytest.approx(terms, rel=2e-5)
    for name, gradient in expected.items():
        if gradient is None:
            assert gradients[name] is None
            continue
        error = (gradients[name] - gradient).norm()
        assert error <= 1e-4 * gradient.norm(), (name, float(error))
    # The student adds LoRA to what the teacher has, or takes the values that no relation reads.
    known = "qkv" if kind == "lora" else "" if "v" in relations else "v"
    assert bases == ([] if architecture == "qwen3" else [known, known])
    assert not any(hasattr(m, "_sharing") for m in module.model.modules())


@pytest.mark.parametrize("kind", ["lora", "direct"])
def test_half_precision_is_as_near_to_the_truth_as_before(kind):
    """bfloat16 weights under autocast: errors against float32 weights of the same values."""
    ids = tiny.tokens(2, 61)
    exact = restorable("llama", fused=False, dtype=torch.bfloat16, kind=kind)
    exact.model.float()
    terms, expected = step(module_for(exact), ids)
    errors = {}
    for fused in (False, True):
        made = restorable("llama", fused=fused, dtype=torch.bfloat16, kind=kind)
        module = module_for(made)
        with made.adapter.without_casts():
            got, gradients = step(module, ids, autocast=True)
        errors[fused] = [abs(got[name] / terms[name] - 1) for name in terms]
        errors[fused] += [
            float((gradients[name] - g).norm() / g.norm()) for name, g in expected.items()
        ]
    plain, fused = (torch.tensor(errors[f]) for f in (False, True))
    assert (plain > 0).all()  # it is rounded
    assert fused.mean() < 1.2 * plain.mean()
    assert fused.max() < 1.5 * plain.max()


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
def test_every_view_is_the_same(architecture):
    ids = tiny.tokens(2, 41)
    plain, fused = (restorable(architecture, fused=f) for f in (False, True))
    for view in ("original", "stretched", "restored"):
        logits = []
        for made in (plain, fused):
            with made.view(view) as model, torch.no_grad():
                logits.append(model(input_ids=ids).logits)
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


def test_on_a_cpu_nothing_changes_unless_asked(restorable):
    ids = tiny.tokens()
    plain = tiny.tiny_model()
    with restorable.view("original") as model, torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_generation_with_a_cache_goes_the_plain_way(monkeypatch):
    plain, fused = (restorable("llama", fused=f) for f in (False, True))
    calls = count_fused_calls(monkeypatch)
    ids = tiny.tokens(1, 9)
    texts = [
        m.model.generate(input_ids=ids, max_new_tokens=5, do_sample=False) for m in (plain, fused)
    ]
    assert torch.equal(*texts)
    assert calls["project"] == 0 < calls["norm"]


def test_hooks_on_a_projection_are_called(monkeypatch):
    made = restorable("llama", fused=True)
    calls = count_fused_calls(monkeypatch)
    layers = made.model.get_base_model().model.layers
    seen = []
    layers[1].self_attn.k_proj.register_forward_hook(lambda *_: seen.append("k"))
    layers[2].mlp.up_proj.register_forward_hook(lambda *_: seen.append("up"))
    with torch.no_grad():
        made.model(input_ids=tiny.tokens(), use_cache=False)
    assert seen == ["k", "up"] and calls == {"norm": 7, "gated_mlp": 2, "project": 2}


def test_a_merged_model_is_the_same():
    made = restorable("llama", fused=True)
    ids = tiny.tokens()
    with torch.no_grad():
        expected = made.model(input_ids=ids).logits
        merged = made.adapter.merge()
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-3)


def test_other_adapters_go_the_plain_way(monkeypatch):
    calls = count_fused_calls(monkeypatch)
    for adapter in ({"target_modules": ["q_proj", "o_proj"]}, {"target_modules": ["v_proj"]}):
        plain, fused = (restorable("llama", fused=f, **adapter) for f in (False, True))
        terms, _ = step(module_for(plain), tiny.tokens())
        assert step(module_for(fused), tiny.tokens())[0] == pytest.approx(terms, rel=2e-5)
    assert calls["project"] == 0


def test_code_that_computes_something_else_is_not_replaced(caplog):
    model = tiny.tiny_model().requires_grad_(False)
    from linearard.capture import AttentionTap

    AttentionTap(model)
    odd = model.model.layers[0].mlp
    odd.forward = lambda x: type(odd).forward(odd, x) * 1.1
    assert fuse_layers(model).counts == {"attention": 3, "norm": 7} and "LlamaMLP" in caplog.text


def case(ranks=(3, 5, 2), dropout=0.0, bias=True):
    """Float64 inputs of `project`: 2 heads of 4 for q, 1 for k and v."""
    make = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    widths = (8, 4, 4)
    linears = [
        nn.Linear(6, w, bias=bias, dtype=torch.float64).requires_grad_(False) for w in widths
    ]
    a = [draw(r, 6).requires_grad_() for r in ranks]
    b = [draw(w, r).requires_grad_() for w, r in zip(widths, ranks, strict=True)]
    x = draw(2, 5, 6).requires_grad_()
    angles = draw(1, 5, 2).repeat(1, 1, 2)
    low_rank = LowRank(a, b, (1.0, 2.0, 0.3), dropout)
    return x, linears, angles.cos(), angles.sin(), low_rank


def by_hand(x, linears, cos, sin, low_rank, seen=None):
    seen = x if seen is None else seen
    outputs = []
    for i, linear in enumerate(linears):
        y = linear(x) + low_rank.scalings[i] * (seen @ low_rank.a[i].T @ low_rank.b[i].T)
        y = y.view(2, 5, -1, 4).transpose(1, 2)
        if i < 2:
            first, second = y[..., :2], y[..., 2:]
            y = y * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]
        outputs.append(y)
    return outputs


@pytest.mark.parametrize("used", [(0, 1, 2), (0, 1), (2,)])
@pytest.mark.parametrize("needs_x", [True, False])
def test_projections_and_their_gradients(used, needs_x):
    x, linears, cos, sin, low_rank = case()
    x.requires_grad_(needs_x)
    outputs = project(x, linears, 4, cos, sin, low_rank)
    expected = by_hand(x, linears, cos, sin, low_rank)
    for got, want in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    slopes = [torch.randn_like(y) for y in expected]
    leaves = [*([x] if needs_x else []), *low_rank.a, *low_rank.b]
    found = []
    for some in (outputs, expected):
        loss = sum((some[i] * slopes[i]).sum() for i in used)
        found.append(torch.autograd.grad(loss, leaves, allow_unused=True))
    for got, want in zip(*found, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_dropout_is_one_draw_for_the_three_low_rank_products():
    x, linears, cos, sin, low_rank = case(dropout=0.5)
    torch.manual_seed(4)
    outputs = project(x, linears, 4, cos, sin, low_rank)
    torch.manual_seed(4)
    _, mask = torch.native_dropout(x.detach().view(-1, 6), 0.5, True)
    seen = x * mask.view_as(x) * 2.0
    assert 0 < mask.double().mean() < 1
    expected = by_hand(x, linears, cos, sin, low_rank, seen)
    slopes = [torch.randn_like(y) for y in expected]
    leaves = [x, *low_rank.a, *low_rank.b]
    found = [
        torch.autograd.grad(sum((y * s).sum() for y, s in zip(some, slopes, strict=True)), leaves)
        for some in (outputs, expected)
    ]
    for got, want in zip((*outputs, *found[0]), (*expected, *found[1]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_known_outputs_of_the_projections_can_be_given():
    x, linears, cos, sin, low_rank = case(bias=False)
    expected = project(x, linears, 4, cos, sin, low_rank)
    given = base_outputs(x, linears)
    values = given[2].clone()
    for got, want in zip(project(x, linears, 4, cos, sin, low_rank, given), expected, strict=True):
        assert torch.equal(got, want)
    assert torch.equal(given[2], values)  # the teacher's relations still read these


def test_low_rank_products_of_some_projections():
    x, linears, cos, sin, low_rank = case()
    low_rank.a[2] = low_rank.b[2] = None
    outputs = project(x, linears, 4, cos, sin, low_rank)
    assert torch.equal(outputs[2], linears[2](x).view(2, 5, 1, 4).transpose(1, 2))
    low_rank.a[2], low_rank.b[2] = torch.zeros(2, 6).double(), torch.zeros(4, 2).double()
    expected = by_hand(x, linears, cos, sin, low_rank)
    leaves = [x, *low_rank.a[:2], *low_rank.b[:2]]
    slopes = [torch.randn_like(y) for y in expected]
    found = [
        torch.autograd.grad(sum((y * s).sum() for y, s in zip(some, slopes, strict=True)), leaves)
        for some in (outputs, expected)
    ]
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_norm_and_mlp_gradients():
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64)
    gate, up, down = (
        nn.Linear(i, o, bias=False, dtype=torch.float64).requires_grad_(False)
        for i, o in ((6, 10), (6, 10), (10, 6))
    )
    assert torch.autograd.gradcheck(lambda x: norm(x, weight, 1e-3), (x,))
    assert torch.autograd.gradcheck(lambda x: gated_mlp(x, gate, up, down), (x,))
    by_hand = down(nn.functional.silu(gate(x)) * up(x))
    torch.testing.assert_close(gated_mlp(x, gate, up, down), by_hand)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("architecture", FUSED)
def test_steps_on_a_gpu_are_as_near_to_float32_as_the_models_own(architecture):
    """Loss and gradients in bfloat16, fused and not, beside those in float32."""
    ids = tiny.tokens(2, 96)
    objective = {"relations": {}, "lm_weight": 1.0}
    _, exact = step(module_for(restorable(architecture, fused=False), **objective), ids)
    errors = {}
    for fused in (True, False):
        made = restorable(architecture, fused=True, dtype=torch.bfloat16)
        made.model.to("cuda")
        if not fused:
            made.fused.undo()
        module = module_for(made, **objective)
        with torch.autocast("cuda", torch.bfloat16):
            loss = module(ids.cuda())["loss"]
        loss.backward()
        found = {name: p.grad for name, p in made.model.named_parameters() if p.requires_grad}
        wrong = sum(float((found[name].cpu() - exact[name]).square().sum()) for name in exact)
        right = sum(float(gradient.square().sum()) for gradient in exact.values())
        errors[fused] = (wrong / right) ** 0.5
    assert errors[True] < max(1.5 * errors[False], 0.05), errors
