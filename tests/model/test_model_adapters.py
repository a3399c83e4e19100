"""What is trained, what stays, and what it becomes when merged."""

import pytest
import torch
from torch.nn import functional

import tiny
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.errors import ModelError, RecipeError
from linearard.model import AdapterConfig

KINDS = ("lora", "direct")


@torch.no_grad()
def logits(model, ids=None):
    return model(input_ids=tiny.tokens() if ids is None else ids, use_cache=False).logits


def train(restorable, steps=3):
    """A few AdamW steps on next-token loss."""
    optimizer = torch.optim.AdamW(restorable.adapter.parameters(), lr=0.05)
    for seed in range(steps):
        ids = tiny.tokens(seed=seed)
        out = restorable.model(input_ids=ids).logits
        functional.cross_entropy(out[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])  # plain, with biases, fused
def test_training_leaves_the_base_and_the_teacher_bit_for_bit(architecture, kind):
    restorable = tiny.tiny_restorable(architecture, kind=kind)
    frozen = {
        name: p.detach().clone()
        for name, p in restorable.model.named_parameters()
        if not p.requires_grad
    }
    with restorable.view("original") as model:
        teacher = logits(model)
    student = logits(restorable.model)
    train(restorable)
    assert (logits(restorable.model) - student).abs().max() > 0.1
    with restorable.view("original") as model:
        assert torch.equal(logits(model), teacher)
    live = dict(restorable.model.named_parameters())
    assert all(torch.equal(live[name], before) for name, before in frozen.items())
    assert all(p.grad is None for n, p in live.items() if n in frozen)


@pytest.mark.parametrize("kind", KINDS)
def test_merge_is_the_student(kind):
    restorable = tiny.tiny_restorable(kind=kind)
    train(restorable)
    student = logits(restorable.model)
    merged = restorable.adapter.merge()
    torch.testing.assert_close(logits(merged), student, rtol=1e-4, atol=1e-4)
    plain = tiny.tiny_model()
    assert {n: p.shape for n, p in merged.named_parameters()} == {
        n: p.shape for n, p in plain.named_parameters()
    }
    assert type(merged) is type(plain)
    changed = {
        n
        for (n, p), before in zip(merged.named_parameters(), plain.parameters(), strict=True)
        if not torch.equal(p, before)
    }
    assert {n.split(".")[-2] for n in changed} == {"q_proj", "k_proj", "v_proj"}


def test_lora_is_alpha_over_r_times_the_product():
    restorable = tiny.tiny_restorable(r=3, alpha=7.0)
    tiny.perturb_adapter(restorable)
    layer = restorable.model.get_base_model().model.layers[1].self_attn.k_proj
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    expected = x.double() @ (layer.base_layer.weight.double() + 7.0 / 3 * b @ a).T
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_direct_keeps_copies_of_q_k_v_and_of_nothing_else(architecture):
    plain = tiny.tiny_model(architecture)
    wanted = [
        p.numel()
        for name, p in plain.named_parameters()
        if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj")
    ]
    restorable = tiny.tiny_restorable(architecture, kind="direct")
    copies = [b for n, b in restorable.model.named_buffers() if "original_" in n and "_proj" in n]
    assert sorted(b.numel() for b in copies) == sorted(wanted)
    live = {p.data_ptr() for p in restorable.model.parameters()}
    assert not any(b.data_ptr() in live for b in copies)
    every = sum(p.numel() for p in restorable.model.parameters())
    assert every == sum(p.numel() for p in plain.parameters())
    # the copies are no part of a saved model
    assert not any("original_" in key and "_proj" in key for key in restorable.model.state_dict())


def test_direct_masters_are_float32_over_bfloat16_weights():
    model = tiny.tiny_model("qwen2")
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    base = model.model.layers[0].self_attn.q_proj.weight.clone()
    restorable = tiny.tiny_restorable("qwen2", model=model, kind="direct")
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.weight.dtype == torch.float32 and layer.original_weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight, base.float())
    with torch.no_grad():
        layer.weight += 1e-5 * layer.weight.sign()  # below bfloat16's resolution: kept
    assert not torch.equal(layer.weight, base.float())
    assert logits(restorable.model).dtype == torch.bfloat16
    merged = restorable.adapter.merge()
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert type(merged.model.layers[0].self_attn.q_proj) is torch.nn.Linear


def test_dropout_acts_on_the_student_in_training_only():
    restorable = tiny.tiny_restorable(dropout=0.5)
    tiny.perturb_adapter(restorable)
    quiet = logits(restorable.model.eval())
    assert torch.equal(logits(restorable.model), quiet)
    restorable.model.train()
    assert not torch.equal(logits(restorable.model), quiet)


def test_named_targets_replace_the_default():
    restorable = tiny.tiny_restorable(target_modules=["o_proj"], kind="direct")
    names = {n.split(".")[-2] for n, p in restorable.model.named_parameters() if p.requires_grad}
    assert names == {"o_proj"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [16, None])
def test_latent_attention_is_trained_by_what_makes_its_queries_keys_and_values(kind, rank):
    from transformers import AutoModelForCausalLM, DeepseekV3Config

    shape = {key: getattr(tiny.tiny_config(), key) for key in tiny.SHAPE_KEYS}
    config = DeepseekV3Config(**shape | tiny.MLA | {"q_lora_rank": rank})
    restorable = tiny.tiny_restorable(model=AutoModelForCausalLM.from_config(config), kind=kind)
    trained = [n for n, p in restorable.model.named_parameters() if p.requires_grad]
    found = {part for name in trained for part in name.split(".") if part.endswith(("proj", "mqa"))}
    queries = {"q_proj"} if rank is None else {"q_a_proj", "q_b_proj"}
    assert found == queries | {"kv_a_proj_with_mqa", "kv_b_proj"}


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_targets_are_refused(kind):
    with pytest.raises(ModelError) as caught:
        tiny.tiny_restorable(kind=kind, target_modules=["q_proj", "w_q"])
    message = str(caught.value)
    assert "q_proj, w_q" in message and "down_proj" in message and "target_modules" in message


def test_a_model_without_known_projections_says_what_it_has(llama):
    for layer in llama.model.layers:
        layer.self_attn.query = layer.self_attn.q_proj
        del layer.self_attn.q_proj
    with pytest.raises(ModelError, match="k_proj, o_proj, query"):
        tiny.tiny_restorable(model=llama)


TARGETS = {
    "a name": (["k_proj"], [f"layers.{i}.self_attn.k_proj" for i in range(3)]),
    "a path": (["model.layers.1.self_attn.q_proj"], ["layers.1.self_attn.q_proj"]),
    "the end of a path": (["layers.1.self_attn.v_proj"], ["layers.1.self_attn.v_proj"]),
    "a pattern": (
        ["layers.[02].self_attn.[qk]_proj"],
        [f"layers.{i}.self_attn.{x}_proj" for i in (0, 2) for x in "qk"],
    ),
    "a pattern and a name": (
        ["layers.0.*.q_proj", "down_proj"],
        ["layers.0.self_attn.q_proj", *(f"layers.{i}.mlp.down_proj" for i in range(3))],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", TARGETS)
def test_targets_by_name_path_and_pattern(case, kind, tmp_path):
    asked, expected = TARGETS[case]
    restorable = tiny.tiny_restorable(kind=kind, target_modules=asked)
    marks = (".lora_A.default.weight", ".lora_B.default.weight", ".weight")
    trained = set()
    for name, parameter in restorable.model.named_parameters():
        if parameter.requires_grad:
            mark = next(mark for mark in marks if name.endswith(mark))
            trained.add(name.removesuffix(mark).partition("model.layers.")[2])
    assert trained == {path.removeprefix("layers.") for path in expected}
    # and a checkpoint of them can be read again
    tiny.perturb_adapter(restorable)
    restorable.adapter.save(tmp_path)
    other = tiny.tiny_restorable(kind=kind, target_modules=asked)
    other.adapter.load(tmp_path)
    for one, two in zip(restorable.adapter.parameters(), other.adapter.parameters(), strict=True):
        assert torch.equal(one, two)


def gemma3_with_vision():
    import transformers

    text = tiny.tiny_config("gemma3").to_dict()
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=250,
        boi_token_index=251,
        eoi_token_index=252,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", [None, ["q_proj", "v_proj"], ["layers.*.self_attn.k_proj"]])
def test_a_vision_tower_is_not_trained(asked, kind):
    """Its projections have the same names, and no gradient: two processes would wait for one."""
    model = gemma3_with_vision()
    before = [name for name, _ in model.named_modules() if "vision" in name and "q_proj" in name]
    assert len(before) == 2
    restorable = tiny.tiny_restorable(model=model, kind=kind, target_modules=asked)
    trained = [n for n, p in restorable.model.named_parameters() if p.requires_grad]
    a_layer = (3 if asked is None else len(asked)) * (2 if kind == "lora" else 1)
    assert len(trained) == 3 * a_layer and all("language_model" in name for name in trained)
    train(restorable)  # every trained weight gets a gradient: nothing is left over
    module = RestorationModule(restorable, ObjectiveConfig(relations={"qk": 1.0}, lm_weight=1.0))
    module(tiny.tokens())["loss"].backward()
    assert all(parameter.grad is not None for parameter in restorable.adapter.parameters())


@pytest.mark.parametrize("name", ["Qwen3NextConfig", "Lfm2Config", "OlmoHybridConfig"])
@pytest.mark.parametrize("kind", KINDS)
def test_hybrid_models_are_restored_where_they_rotate(name, kind):
    """Layers without attention are left alone; those with it lose KL to the original by training."""
    import transformers

    shape = {k: v for k, v in tiny.tiny_config().to_dict().items() if k in tiny.SHAPE_KEYS}
    other = "conv" if name == "Lfm2Config" else "linear_attention"
    own = {
        "Qwen3NextConfig": {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        }
    }.get(name, {})
    if not hasattr(transformers, name):
        pytest.skip(f"this version of transformers has no {name}")
    config = getattr(transformers, name)(
        **shape | own, layer_types=[other, "full_attention", other]
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    restorable = tiny.tiny_restorable(model=model, kind=kind)
    trained = [n for n, p in restorable.model.named_parameters() if p.requires_grad]
    assert trained and all(".layers.1." in name for name in trained)
    module = RestorationModule(restorable, ObjectiveConfig(relations={"qk": 1.0}))
    optimizer = torch.optim.AdamW(restorable.adapter.parameters(), lr=0.02)
    losses = []
    for _ in range(16):
        loss = module(tiny.tokens())["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "qlora"},
        {"r": 0},
        {"r": 2.5},
        {"alpha": 0.0},
        {"dropout": 1.0},
        {"dropout": -0.1},
    ],
)
def test_bad_configurations_are_refused(changes):
    (name,) = changes
    with pytest.raises(RecipeError, match=f"adapter.{name}"):
        AdapterConfig(**changes)
