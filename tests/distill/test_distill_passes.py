"""What a step runs and what it keeps: early ends, recomputation, observers, memory, distribution."""

import gc
import weakref

import dense
import pytest
import torch
from torch import nn

import tiny
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.model import ChunkedCausalLM

SELF = {"q": 1.0, "k": 1.0, "v": 1.0}
ALL = SELF | {"qk": 1.0}
OUTPUT = {"relations": SELF, "logit_weight": 0.5, "lm_weight": 0.5}


def module_for(restorable=None, **objective):
    restorable = restorable or tiny.tiny_restorable()
    tiny.perturb_adapter(restorable)
    module = RestorationModule(restorable, ObjectiveConfig(**objective))
    module.train()
    return module


def count_calls(module):
    """How often each part runs, by name."""
    base = module.model.get_base_model()
    parts = {f"layer {i}": layer.input_layernorm for i, layer in enumerate(base.model.layers)}
    parts |= {"last mlp": base.model.layers[-1].mlp, "norm": base.model.norm, "head": base.lm_head}
    calls = dict.fromkeys(parts, 0)

    def hook(name):
        def count(*_):
            calls[name] += 1

        return count

    for name, part in parts.items():
        part.register_forward_hook(hook(name))
    return calls


def step(module, ids=None, mask=None):
    with module.restorable.tap.step():
        out = module(tiny.tokens(2, 41) if ids is None else ids, mask)
        return out["loss"].detach(), dense.gradients(module.restorable, out["loss"])


#: Objective, and how often teacher and student together run each layer, the last MLP, norm and head.
RUNS = {
    "no output loss": ({"relations": ALL}, (2, 2, 2), (0, 0, 0)),
    "early layers": ({"relations": SELF, "layers": [1, 0]}, (2, 2, 0), (0, 0, 0)),
    "logit loss": ({"relations": SELF, "logit_weight": 1.0}, (2, 2, 2), (2, 2, 2)),
    "language-model loss": ({"relations": SELF, "lm_weight": 1.0}, (2, 2, 2), (1, 1, 1)),
    "no teacher": ({"relations": {}, "lm_weight": 1.0}, (1, 1, 1), (1, 1, 1)),
}


@pytest.mark.parametrize("case", RUNS)
def test_no_pass_goes_further_than_a_loss_reads(case):
    objective, layers, end = RUNS[case]
    module = module_for(**objective)
    calls = count_calls(module)
    with torch.no_grad():
        module(tiny.tokens(2, 41))
    assert tuple(calls.values()) == (*layers, *end)


@pytest.mark.parametrize(
    "objective", [{"relations": ALL}, OUTPUT, {"relations": SELF, "layers": [1]}]
)
@pytest.mark.parametrize("kind", ["lora", "direct"])
def test_recomputation_gives_the_same_loss_and_gradients(kind, objective):
    ids = tiny.tokens(2, 41)
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    module = module_for(tiny.tiny_restorable(kind=kind), **objective)
    loss, expected = step(module, ids, mask)
    module.gradient_checkpointing_enable()
    again, gradients = step(module, ids, mask)
    assert torch.equal(again, loss)
    dense.assert_same_gradients(gradients, expected, rtol=1e-6)
    assert torch.equal(step(module, ids, mask)[0], loss)  # and a second time


def test_recomputation_really_recomputes_all_but_the_layer_that_is_cut():
    module = module_for(relations=ALL)
    module.gradient_checkpointing_enable()
    calls = count_calls(module)
    step(module)
    assert calls == {"layer 0": 3, "layer 1": 3, "layer 2": 2, "last mlp": 0, "norm": 0, "head": 0}


def test_the_last_layers_are_not_recomputed_if_so_asked():
    module = module_for(**OUTPUT)
    expected = step(module)[1]
    module.gradient_checkpointing_enable(kept_layers=2)
    calls = count_calls(module)
    dense.assert_same_gradients(step(module)[1], expected, rtol=1e-6)
    assert [calls[f"layer {i}"] for i in range(3)] == [3, 2, 2]


def test_recomputation_with_an_output_loss_recomputes_every_layer():
    module = module_for(**OUTPUT)
    module.gradient_checkpointing_enable()
    calls = count_calls(module)
    step(module)
    assert [calls[f"layer {i}"] for i in range(3)] == [3, 3, 3]


def test_recomputed_terms_are_not_added_a_second_time():
    module = module_for(relations=ALL)
    module.gradient_checkpointing_enable()
    with module.restorable.tap.step():
        out = module(tiny.tokens(2, 41))
        observer = module.restorable.tap._observer
        terms = dict(observer.terms)
        out["loss"].backward()
    assert all(observer.terms[name] is term for name, term in terms.items())


def test_recomputation_with_dropout_draws_the_same_noise():
    restorable = tiny.tiny_restorable(dropout=0.4)
    plain = module_for(restorable, relations=ALL)
    torch.manual_seed(3)
    loss, expected = step(plain)
    recomputing = RestorationModule(restorable, ObjectiveConfig(relations=ALL)).train()
    recomputing.gradient_checkpointing_enable()
    torch.manual_seed(3)
    again, gradients = step(recomputing)
    assert torch.equal(again, loss)
    dense.assert_same_gradients(gradients, expected, rtol=1e-6)


def test_a_stage_without_recomputation_after_one_with_it():
    restorable = tiny.tiny_restorable()
    first = module_for(restorable, **OUTPUT)
    first.gradient_checkpointing_enable()
    step(first)
    second = RestorationModule(restorable, ObjectiveConfig(relations=ALL)).train()
    calls = count_calls(second)
    step(second)
    assert [calls[f"layer {i}"] for i in range(3)] == [2, 2, 2]
    third = RestorationModule(restorable, ObjectiveConfig(**OUTPUT)).train()
    third.gradient_checkpointing_enable()
    step(third)


@pytest.mark.parametrize(
    "objective", [{"relations": ALL}, OUTPUT, {"relations": {}, "lm_weight": 1.0}]
)
def test_nothing_observes_after_a_step(objective):
    module = module_for(**objective)
    module(tiny.tokens())
    assert module.restorable.tap._observer is None
    module.gradient_checkpointing_enable()
    module.eval()
    with torch.no_grad():
        module(tiny.tokens())
    assert module.restorable.tap._observer is None


def test_nothing_observes_after_an_error():
    module = module_for(relations=ALL)
    handle = (
        module.model.get_base_model()
        .model.layers[1]
        .mlp.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        module(tiny.tokens())
    assert module.restorable.tap._observer is None
    assert module.model.training  # although the teacher's pass failed
    handle.remove()
    step(module)


def test_nothing_observes_after_an_error_behind_the_last_layer(monkeypatch):
    module = module_for(**OUTPUT)
    module.gradient_checkpointing_enable()

    def fail(self, rows):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ChunkedCausalLM, "chunks", fail)
    with module.restorable.tap.step():
        with pytest.raises(RuntimeError, match="out of memory"):
            module(tiny.tokens())
        assert module.restorable.tap._observer is not None
    assert module.restorable.tap._observer is None


def test_the_observer_of_one_step_does_not_see_the_teacher_of_the_next():
    """A caller's own loop with recomputation, both parts in one step."""
    restorable, ids = tiny.tiny_restorable(), tiny.tokens(2, 48)
    tiny.perturb_adapter(restorable)
    far = ObjectiveConfig(relations={}, logit_weight=1.0, teacher_window=16)
    module = RestorationModule(restorable, {"near": ObjectiveConfig(relations=ALL), "far": far})
    module.gradient_checkpointing_enable()
    with restorable.tap.step():
        module.train()(ids, part="near")["loss"].backward()
        assert restorable.tap._observer is not None
        loss = module(ids, part="far")["loss"]
    assert torch.equal(loss, RestorationModule(restorable, far)(ids)["loss"])


def watch_queries(monkeypatch):
    """Weak references to the student's queries, by layer."""
    from linearard.distill.relations import StudentRelations

    queries, call = {}, StudentRelations.__call__

    def watching(self, attention):
        queries.setdefault(attention.layer, weakref.ref(attention.query))
        return call(self, attention)

    monkeypatch.setattr(StudentRelations, "__call__", watching)
    return queries


def test_recomputation_keeps_no_students_tensors(monkeypatch):
    queries = watch_queries(monkeypatch)
    module = module_for(relations=ALL)
    module.gradient_checkpointing_enable()
    with module.restorable.tap.step():
        out = module(tiny.tokens())
        assert [queries[layer]() is None for layer in range(3)] == [True, True, False]
        out["loss"].backward()
        del out
    assert queries[2]() is None


def test_a_step_leaves_nothing_behind(monkeypatch):
    queries = watch_queries(monkeypatch)
    module = module_for(relations=ALL)
    out = module(tiny.tokens())
    assert all(queries[layer]() is not None for layer in range(3))  # attention keeps them
    out["loss"].backward()
    del out
    assert all(queries[layer]() is None for layer in range(3))


@pytest.mark.parametrize("kind", ["lora", "direct"])
def test_the_loss_keeps_row_sums_beyond_what_attention_keeps(kind):
    """No copy of a student's operand: only a few numbers a row, and the teacher's operands."""
    # without grouped heads: of those, attention may keep repeated keys in place of the keys
    restorable = tiny.tiny_restorable(kind=kind, changes={"num_key_value_heads": 4})
    module = module_for(restorable, relations=ALL, implementation="chunked")
    ids = tiny.tokens(2, 41)

    def kept_by(run):
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = (storage, storage.nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = run()
        return result, sum(size for _, size in storages.values())

    def plain():  # the same pass, ended at the same place, with no loss
        from linearard.capture import StopForward

        held = []

        def stop(attention):
            held.append(attention)
            if attention.layer == 2:
                raise StopForward

        with restorable.tap.observing(stop):
            module.model(input_ids=ids)
        # the last layer's operands count as kept: they are what its term is formed of
        return held, sum(
            t.untyped_storage().nbytes() for t in (held[2].query, held[2].key, held[2].value)
        )

    (_, last_operands), without = kept_by(plain)
    _, with_loss = kept_by(lambda: module(ids))
    with torch.no_grad():
        teacher, _ = dense.capture(restorable, "original", ids)
    held_operand = teacher[0].query.nbytes
    teachers = sum(t.nbytes for a in teacher for t in (a.query, a.key, a.value))
    # layers, relations, heads, numbers a row (a logsumexp is two, for each model), rows, float32
    row_sums = 3 * 4 * 4 * 4 * ids.numel() * 4
    spare = held_operand // 2  # one copy of one operand of one layer would show
    assert with_loss <= without + last_operands + teachers + row_sums + spare


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("case", [*RUNS, "teacher inputs"])
def test_nothing_waits_for_the_garbage_collector(case, recompute):
    """Exceptions end passes early, and keep their frames where anything in these keeps them (Python 3.12)."""
    teacher_inputs = {"relations": {"qk": 1.0, "v": 1.0}, "inputs": "teacher"}
    module = module_for(**(RUNS[case][0] if case in RUNS else teacher_inputs))
    if recompute:
        module.gradient_checkpointing_enable()
    step(module)
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        step(module)
        gc.collect()
        left = [type(thing) for thing in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not any(issubclass(kind, torch.Tensor) for kind in left)


#: Objective, adapter, and whether some trained weight gets no gradient.
UNUSED = [
    ({"relations": SELF}, {}, False),
    ({"relations": ALL}, {"kind": "direct"}, False),
    ({"relations": {"qk": 1.0}}, {}, True),  # the last value projection
    ({"relations": SELF, "layers": [0, 1]}, {}, True),
    ({"relations": SELF, "layer_weights": [1.0, 1.0, 0.0]}, {}, True),
    ({"relations": {"qk": 1.0}, "lm_weight": 1.0}, {}, False),
    ({"relations": {}, "logit_weight": 1.0}, {}, False),
    ({"relations": SELF}, {"target_modules": ["q_proj", "v_proj", "o_proj"]}, True),
]


@pytest.fixture
def process_group(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("PyTorch without torch.distributed")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("objective", "adapter", "unused"), UNUSED)
@pytest.mark.parametrize("recompute", [False, True])
def test_distributed_wrapper(objective, adapter, unused, recompute, process_group):
    """DistributedDataParallel fails in the second step if a weight it waits for gets no gradient."""
    module = module_for(tiny.tiny_restorable(**adapter), **objective)
    _, expected = step(module)
    assert module.leaves_parameters_unused is unused
    if recompute:
        module.gradient_checkpointing_enable()
    wrapped = nn.parallel.DistributedDataParallel(
        module, find_unused_parameters=module.leaves_parameters_unused
    )
    for _ in range(2):
        with module.restorable.tap.step():
            gradients = dense.gradients(module.restorable, wrapped(tiny.tokens(2, 41))["loss"])
        dense.assert_same_gradients(gradients, expected, rtol=1e-6)


@pytest.mark.parametrize(("objective", "adapter", "unused"), UNUSED)
def test_unused_is_not_said_lightly(objective, adapter, unused):
    module = module_for(tiny.tiny_restorable(**adapter), **objective)
    module(tiny.tokens())["loss"].backward()
    assert unused == any(p.grad is None for p in module.restorable.adapter.parameters())
