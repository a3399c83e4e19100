"""Counted operations against those of the products in a real step of a dense implementation."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from linearard.counting import step_flops
from linearard.counting.products import alike_products, step_products, visible_pairs
from linearard.counting.shapes import ModelShape
from linearard.counting.step import Step
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.model import AdapterConfig, RestorableModel
from linearard.model.fused import fuse_layers

TOKENS, BATCH = 37, 3
SELF = {"q": 1.0, "k": 1.0, "v": 1.0}
OBJECTIVES = {
    "paper": {"relations": SELF},
    "one relation": {"relations": {"k": 1.0}},
    "inner layers": {"relations": {"qk": 1.0, "v": 1.0}, "layers": [0, 1]},
    "all and logits": {"relations": SELF | {"qk": 1.0}, "logit_weight": 1.0, "logit_positions": 11},
    "language model": {"relations": {}, "lm_weight": 1.0},
    "two output terms": {
        "relations": {},
        "logit_weight": 1.0,
        "logit_positions": None,
        "lm_weight": 1.0,
    },
    "hidden": {"relations": {}, "hidden_weight": 1.0, "hidden_layers": [1]},
    "windowed teacher": {
        "relations": {},
        "logit_weight": 1.0,
        "logit_positions": None,
        "teacher_window": 14,
    },
    "teacher inputs": {"relations": {"qk": 1.0, "v": 1.0}, "inputs": "teacher"},
}


class Counter(TorchDispatchMode):
    """Operations of every matrix product that reaches a kernel."""

    def __init__(self):
        super().__init__()
        self.counts = {"mm": 0, "bmm": 0}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        name = str(operation).split(".")[1].rstrip("_")
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            left = args[1 if "add" in name else 0]
            if left.shape[-1] == 1:  # positions times frequencies, in some versions of transformers
                return out
            self.counts["bmm" if "bmm" in name else "mm"] += 2 * out.numel() * left.shape[-1]
        return out


#: Last layers that are not recomputed, by what is.
KEPT = {"": 0, "all": 0, "all but two": 2, "none": 9}


#: What mixtures of experts ask for beside the shape of all: each token goes through 2 of 5.
EXPERTS = {
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    # the first layer has a plain MLP, the others an expert for every token too
    "glm4_moe": {
        "head_dim": 8,
        "n_routed_experts": 5,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 20,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
}


def counted_in_a_step(architecture, adapter, objective, recompute, fused=False):
    """Operations of one step by ATen name: dense attention and dense relations."""
    model = tiny.tiny_model(
        architecture, attn_implementation="eager", **EXPERTS.get(architecture, {})
    )
    restorable = RestorableModel(model, None, tiny.LINEAR, adapter)
    if architecture in EXPERTS:
        model.set_experts_implementation("eager")  # products one by one, which can be counted
    if fused:
        fuse_layers(restorable.model, everywhere=True)
    module = RestorationModule(restorable, objective).train()
    if recompute:
        module.gradient_checkpointing_enable(KEPT[recompute])
    ids = torch.randint(tiny.VOCAB, (BATCH, TOKENS))
    with restorable.tap.step(), Counter() as counter:
        module(ids)["loss"].backward()
    return counter.counts


def planned(architecture, adapter, objective, recompute, fused=False):
    config = tiny.tiny_config(architecture, **EXPERTS.get(architecture, {}))
    shape = ModelShape.of(config, adapter)
    how = {"native_window": tiny.WINDOW, "recompute": bool(recompute), "fused": fused}
    how["kept_layers"] = KEPT[recompute]
    found = step_products(Step(shape, objective, TOKENS, BATCH, **how))
    counts = {"mm": 0, "bmm": 0}
    for product in found:
        if product.kind in ("gemm", "lora", "head"):
            counts["mm"] += product.flops
        elif product.counted or product.phase != "backward":
            # dense matrices hold all pairs, and keep them for the backward pass
            pairs = visible_pairs(product.columns, shape.layers[product.layer].window)
            counts["bmm"] += product.flops * product.columns**2 // pairs
    return counts


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("recompute", KEPT)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_products_are_those_of_a_real_step(name, recompute, fused):
    objective = ObjectiveConfig(**OBJECTIVES[name], implementation="reference")
    adapter = AdapterConfig(r=5, dropout=0.0)
    case = ("llama", adapter, objective, recompute, fused)
    assert planned(*case) == counted_in_a_step(*case)


@pytest.mark.parametrize("architecture", ["mistral", "qwen3", "gemma3", "phi3"])
@pytest.mark.parametrize("kind", ["lora", "direct"])
def test_every_architecture_and_adapter(architecture, kind):
    objective = ObjectiveConfig(relations=SELF, lm_weight=1.0, implementation="reference")
    adapter = AdapterConfig(r=3, dropout=0.0, kind=kind)
    got = planned(architecture, adapter, objective, "")
    assert got == counted_in_a_step(architecture, adapter, objective, "")


@pytest.mark.parametrize("architecture", EXPERTS)
def test_mixtures_of_experts_count_the_experts_that_run(architecture):
    objective = ObjectiveConfig(relations=SELF, lm_weight=1.0, implementation="reference")
    adapter = AdapterConfig(r=3, dropout=0.0)
    got = planned(architecture, adapter, objective, "")
    assert got == counted_in_a_step(architecture, adapter, objective, "")


@pytest.mark.parametrize(("tokens", "window"), [(1, None), (7, None), (7, 3), (7, 9), (5, 1)])
def test_visible_pairs_are_those_of_the_mask(tokens, window):
    mask = torch.ones(tokens, tokens).tril()
    if window is not None:
        mask = mask.triu(1 - window)
    assert visible_pairs(tokens, window) == mask.sum()


def test_nothing_computed_twice_counts():
    config, adapter = tiny.tiny_config(), AdapterConfig(r=4)
    objective = ObjectiveConfig()
    total = step_flops(config, objective, TOKENS, BATCH, adapter=adapter)
    shape = ModelShape.of(config, adapter)
    products = step_products(Step(shape, objective, TOKENS, BATCH, tiny.WINDOW, recompute=True))
    assert total == sum(p.flops for p in products if p.counted)
    assert total < sum(p.flops for p in products)
    assert step_flops(config, objective, TOKENS, 2 * BATCH, adapter=adapter) == 2 * total


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "gemma3"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_another_rank_is_the_shape_that_is_read_off_with_it(architecture, dropout):
    config = tiny.tiny_config(architecture)
    shape = ModelShape.of(config, AdapterConfig(r=12, dropout=0.05))
    found = ModelShape.of(config, AdapterConfig(r=3, dropout=dropout))
    assert shape.with_lora(3, dropout) == found


def test_products_that_differ_in_their_layer_alone_are_counted_together():
    shape = ModelShape.of(tiny.tiny_config("gemma3"), AdapterConfig(r=4))
    step = Step(shape, ObjectiveConfig(logit_weight=1.0), TOKENS, BATCH, tiny.WINDOW)
    products, alike = step_products(step), alike_products(step)
    assert sum(alike.values()) == len(products) > len(alike)
    for kind in {product.kind for product in products}:
        whole = sum(p.flops for p in products if p.kind == kind)
        assert whole == sum(p.flops * count for p, count in alike.items() if p.kind == kind)
