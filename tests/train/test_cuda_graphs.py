"""Steps as CUDA graphs: the same numbers as plain steps, and plain steps where there is no graph."""

import contextlib

import pytest
import torch
from torch import nn

import small_run
import tiny
from linearard.distill import ObjectiveConfig, RestorationModule, teacher_inputs
from linearard.train import trainer
from linearard.train.cuda_graphs import (
    CapturedSteps,
    GradientBuffers,
    _Kind,
    _reason,
    find_gradients,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
OBJECTIVES = {
    "near": ObjectiveConfig(
        relations={"q": 1.0, "k": 1.0, "v": 1.0, "qk": 1.0}, logit_weight=0.5, logit_positions=None
    ),
    "short": ObjectiveConfig(relations={"qk": 1.0}),  # leaves the last layer's values untrained
    "text": ObjectiveConfig(relations={}, lm_weight=1.0),
    "beside": ObjectiveConfig(relations={"qk": 1.0, "v": 1.0}, inputs="teacher"),
}


def test_gradients_move_into_buffers():
    first, second, third = (nn.Parameter(torch.randn(3)) for _ in range(3))
    buffers = GradientBuffers()
    first.grad = torch.tensor([1.0, 2.0, 3.0])
    buffers.adopt([first, second])
    assert first.grad.tolist() == [1, 2, 3] and second.grad.tolist() == [0, 0, 0]
    assert third.grad is None
    addresses = [p.grad.data_ptr() for p in (first, second)]
    first.grad += 1
    buffers.adopt([first, second])  # in the middle of an accumulation
    assert first.grad.tolist() == [2, 3, 4]
    first.grad, second.grad = None, torch.ones(3)
    buffers.adopt([first, second])
    assert first.grad.tolist() == [0, 0, 0] and second.grad.tolist() == [1, 1, 1]
    assert [p.grad.data_ptr() for p in (first, second)] == addresses


def test_gradients_stay_where_memory_ends_while_buffers_are_made(monkeypatch):
    first, second, third = parameters = [nn.Parameter(torch.randn(3)) for _ in range(3)]
    second.grad = torch.ones(3)
    make, made = torch.empty_like, []

    def run_out(x):
        if made:
            raise torch.OutOfMemoryError("no room")
        made.append(x)
        return torch.full_like(x, 777.0)

    buffers = GradientBuffers()
    monkeypatch.setattr(torch, "empty_like", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        buffers.adopt(parameters)
    assert first.grad is None and third.grad is None and second.grad.tolist() == [1, 1, 1]
    monkeypatch.setattr(torch, "empty_like", make)
    buffers.adopt(parameters)
    assert [p.grad.tolist() for p in parameters] == [[0, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_gradients_are_found_as_backward_finds_them():
    """Also where two get one tensor, where the tensor lies otherwise, and where there are some already."""
    a, b, c, d = parameters = [nn.Parameter(torch.randn(3, 5)) for _ in range(4)]

    def loss():
        return ((a + b) * torch.arange(15.0).view(3, 5)).sum() + (c.T @ c).square().sum()

    loss().backward()
    expected = [p.grad for p in (a, b, c)]
    for parameter in parameters:
        parameter.grad = None
    for times in (1, 2):
        find_gradients(loss(), parameters)
        assert d.grad is None and a.grad.data_ptr() != b.grad.data_ptr()
        for parameter, gradient in zip((a, b, c), expected, strict=True):
            torch.testing.assert_close(parameter.grad, times * gradient)
            assert parameter.grad.stride() == parameter.stride()


def test_what_is_not_worth_it_is_not_recorded(caplog):
    weight = nn.Parameter(torch.ones(2))

    def run(x):
        find_gradients((weight * x).sum(), [weight])
        return {"loss": weight.detach().sum()}

    steps = CapturedSteps(run, [weight], lambda inputs: len(inputs["x"]) > 2)
    for _ in range(5):
        steps({"x": torch.ones(2)})
    assert weight.grad.tolist() == [5, 5] and not caplog.text


def test_recordings_make_room_for_other_batches(caplog):
    weight, drawn = nn.Parameter(torch.ones(2)), []

    def run(x):
        drawn.append(torch.rand(()))
        find_gradients((weight * x).sum(), [weight])
        if steps.graphs:
            raise torch.OutOfMemoryError("no room")
        return {"loss": weight.detach().sum()}

    steps = CapturedSteps(run, [weight])
    steps({"x": torch.full((2,), 3.0)})
    steps._kinds["recorded"] = _Kind(graph=object())
    steps({"x": torch.ones(2)})
    assert weight.grad.tolist() == [4, 4] and steps.graphs == 0
    assert len(drawn) == 3 and torch.equal(drawn[1], drawn[2])
    assert caplog.text.count("No CUDA graphs") == 1

    def fail(x):
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        CapturedSteps(fail, [weight])({"x": torch.ones(2)})


def test_without_a_gpu_steps_stay_plain(caplog):
    weight, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

    def run(x, part):
        loss = ((weight if part == "a" else weight * other) * x).sum()
        loss.backward()
        return {"loss": loss.detach()}

    steps = CapturedSteps(run, [weight, other])
    for number in range(1, 6):
        assert (
            float(steps({"x": torch.full((2,), float(number)), "part": "a"})["loss"]) == 2 * number
        )
        assert weight.grad.tolist() == [number * (number + 1) / 2] * 2
    assert other.grad is None
    steps({"x": torch.ones(2), "part": "b"})
    assert weight.grad.tolist() == [16, 16] and other.grad.tolist() == [1, 1]
    assert steps.graphs == 0 and caplog.text.count("No CUDA graphs") == 1


class Recorded:
    """Stands for `torch.cuda.CUDAGraph`, which no CPU has: what was done while it was recorded, again.

    Of the memory that graphs share it may use whatever was free when it was recorded.
    """

    now = None  # the one that is being recorded
    every = ()

    def __init__(self):
        self.program, self.written, self.later = [], [], []
        for earlier in Recorded.every:
            earlier.later.append(self)
        Recorded.every = (*Recorded.every, self)

    def replay(self):
        for graph in self.later:
            for gradient in graph.written:
                gradient.fill_(float("nan"))
        for do in self.program:
            do()


@contextlib.contextmanager
def recording(graph, **options):
    Recorded.now = graph
    yield
    Recorded.now = None


@pytest.mark.parametrize("batches", [1, 2])
def test_gradients_of_graphs(batches, monkeypatch):
    """Of two kinds in turns, the second with a weight of its own, and with steps of one batch and of two."""
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    added, written = [], []

    def run(x, part):
        """Adds x to the gradient as autograd does, at once or when replayed."""
        graph = Recorded.now
        for weight in weights[: 1 + part]:
            grad = weight.grad
            if graph is None:
                weight.grad = x.clone() if grad is None else grad.add_(x)
            elif grad is None:
                weight.grad = new = torch.full_like(weight, float("nan"))
                graph.program.append(lambda new=new: new.copy_(x))
                graph.written.append(new)
                written.append(part)
            else:
                graph.program.append(lambda grad=grad: grad.add_(x))
                added.append(part)
        return {"loss": x.sum()}

    monkeypatch.setattr(Recorded, "every", ())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr("linearard.train.cuda_graphs._stream", object)
    steps, addresses = CapturedSteps(run, weights), set()
    for step in range(1, 20):
        part, expected = 1 - step % 2, torch.zeros(3)
        for batch in range(batches):
            expected += step + batch
            steps({"x": torch.full((3,), float(step + batch)), "part": part}, batches)
        assert torch.equal(weights[0].grad, expected)
        assert weights[1].grad is None if part == 0 else torch.equal(weights[1].grad, expected)
        if step > 8:
            addresses.add(weights[0].grad.data_ptr())
        for weight in weights:
            weight.grad = None
    assert steps.graphs == 2 and len(addresses) == 1
    # The first kind writes, the second adds to that, and writes what is its own.
    assert (written, added) == (([0, 1], [1]) if batches == 1 else ([], [0, 1, 1]))
    weights[0].grad = torch.full((3,), 5.0)  # left by someone who says nothing of it
    for x, part in ((1, 0), (20, 1), (300, 1), (4000, 0)):
        steps({"x": torch.full((3,), float(x)), "part": part}, batches)
    assert weights[0].grad.tolist() == [4326] * 3 and weights[1].grad.tolist() == [320] * 3


def recipe_of(folder, base_folder, objective, parts, **stage):
    """Of one stage that has this objective, or two parts of which the first has it."""
    recipe = small_run.one_stage(folder, base_folder, **stage)
    only = recipe["stages"]["only"]
    if not parts:
        only |= {"objective": objective, "gradient_accumulation_steps": 2, "sequences": 24}
        return recipe
    only.pop("window"), only.pop("sequences")
    near = {"window": 48, "sequences": 12, "batch_size": 2, "objective": objective}
    text = {"window": 96, "sequences": 6, "objective": {"relations": {}, "lm_weight": 1}}
    only["parts"] = {"near": near, "text": text}
    return recipe


@pytest.mark.parametrize("parts", [False, True])
def test_a_run_without_a_gpu_is_that_of_the_trainer(parts, tmp_path, base_folder, monkeypatch):
    """To the bit: gradients found and clipped here, and by PyTorch and accelerate."""
    objective = {"relations": {"q": 1, "qk": 1}, "logit_weight": 1}
    runs = []
    for ours in (False, True):
        monkeypatch.setattr(trainer, "_can_be_captured", lambda args, ours=ours: ours)
        folder = tmp_path / str(ours)
        recipe = recipe_of(folder, base_folder, objective, parts, max_grad_norm=0.01)
        runs.append(small_run.final_bytes(small_run.train(recipe)))
    assert runs[0] == runs[1]


def test_the_reason_is_the_first_error():
    try:
        try:
            raise RuntimeError("not permitted\nmore")
        except RuntimeError:
            raise RuntimeError("failed due to a previous error")  # noqa: B904
    except RuntimeError as error:
        assert _reason(error) == "not permitted"


def restorable_on(device, dropout=0.0):
    """A tiny model in bfloat16, its LoRA in float32."""
    made = tiny.tiny_restorable(
        changes={"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1},
        dropout=dropout,
    )
    tiny.perturb_adapter(made)
    for parameter in made.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    made.model.to(device)
    return made


def trained_steps(captured, dropout=0.0):
    """Losses and weights over 16 batches of three kinds, two a step, on a GPU."""
    made = restorable_on("cuda", dropout)
    module = RestorationModule(made, OBJECTIVES).train()
    parameters = made.adapter.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def run(**inputs):
        with torch.autocast("cuda", torch.bfloat16):
            out = module(**inputs)
        find_gradients(out["loss"] / 2, parameters)
        return {name: value.detach() for name, value in out.items()}

    steps, losses = CapturedSteps(run, parameters), []
    torch.manual_seed(0)
    with made.adapter.without_casts():
        for number in range(32):
            part = list(OBJECTIVES)[number // 2 % 4]
            ids = tiny.tokens(2, 64 if part == "near" else 40, seed=number).cuda()
            inputs = {"input_ids": ids, "part": part}
            losses.append((steps(inputs) if captured else run(**inputs))["loss"])
            if number % 2:
                torch.nn.utils.clip_grad_norm_(parameters, 5.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return torch.stack(losses), [p.detach().clone() for p in parameters], steps.graphs


@pytest.mark.gpu
@needs_gpu
def test_graphs_train_as_plain_steps_do():
    losses, weights, graphs = trained_steps(captured=False)
    got, got_weights, recorded = trained_steps(captured=True)
    assert graphs == 0 and recorded == len(OBJECTIVES)
    again = trained_steps(captured=False)  # attention's gradients differ from run to run
    noise = (again[0] - losses).abs().max()
    assert (got - losses).abs().max() <= 3 * noise + 1e-3 * losses.abs().max()
    for a, b in zip(got_weights, weights, strict=True):
        assert (a - b).norm() < 2e-2 * b.norm()


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]
)
def test_known_gradients_are_not_copied(device, monkeypatch):
    """With teacher inputs the gradients of the layers become those of the parameters as they are."""
    made = restorable_on(device)
    module = RestorationModule(made, OBJECTIVES["beside"]).train()
    formed, written, scale = [], [], teacher_inputs.pointwise.scale_

    def scale_seen(tensors, factor):
        formed.append({x.data_ptr() for x in tensors})
        scale(tensors, factor)

    def run(input_ids):
        with torch.autocast(device, torch.bfloat16):
            loss = module(input_ids)["loss"]
        find_gradients(loss, parameters)
        written.append({p.grad.data_ptr() for p in parameters if p.grad is not None})
        return {"loss": loss.detach()}

    monkeypatch.setattr(teacher_inputs.pointwise, "scale_", scale_seen)
    parameters = made.adapter.parameters()
    steps = CapturedSteps(run, parameters)
    with made.adapter.without_casts():
        for _ in range(3):  # the third is recorded on a GPU
            steps({"input_ids": tiny.tokens(2, 64).to(device)})
            made.model.zero_grad()
    assert steps.graphs == (device == "cuda") and len(written) == 3
    assert formed == written and len(formed[0]) == len(parameters)


@pytest.mark.gpu
@needs_gpu
def test_a_graph_of_autograd_that_is_still_alive_does_not_matter():
    """As after an exception whose frames nobody has collected yet."""
    weight = nn.Parameter(torch.ones(1000, device="cuda"))
    alive = []

    def run(x):
        loss = (weight * x).square().sum()
        if not torch.cuda.is_current_stream_capturing():
            alive.append(loss)
        loss.backward(retain_graph=True)
        return {"loss": loss.detach()}

    steps = CapturedSteps(run, [weight])
    for number in range(1, 7):
        loss = steps({"x": torch.full((1000,), float(number), device="cuda")})["loss"]
        assert float(loss) == 1000 * number**2
    assert steps.graphs == 1 and len(alive) == 2
    total = 2.0 * sum(number**2 for number in range(1, 7))
    assert torch.equal(weight.grad, torch.full_like(weight, total))


@pytest.mark.gpu
@needs_gpu
def test_graphs_draw_new_dropout_every_time():
    losses, _, recorded = trained_steps(captured=True, dropout=0.5)
    assert recorded == len(OBJECTIVES) and torch.isfinite(losses).all()
    x = torch.ones(1000, device="cuda")
    weight = nn.Parameter(torch.ones(1000, device="cuda"))

    def run(x):
        loss = torch.nn.functional.dropout(weight * x, 0.5).sum()
        loss.backward()
        return {"loss": loss.detach()}

    steps = CapturedSteps(run, [weight])
    sums = {float(steps({"x": x})["loss"]) for _ in range(12)}
    assert steps.graphs == 1 and len(sums) > 6


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("parts", [False, True])
def test_a_run_with_graphs(parts, tmp_path, base_folder):
    """Through the command line, in bfloat16: the same losses with and without."""
    objective = {"relations": {"q": 1, "k": 1, "v": 1, "qk": 1}, "logit_weight": 1}
    runs = {}
    for graphs in (False, True):
        folder = tmp_path / str(graphs)
        recipe = recipe_of(folder, base_folder, objective, parts, cuda_graphs=graphs)
        recipe["model"] |= {"device": "cuda", "dtype": "bfloat16"}
        runs[graphs] = torch.tensor(small_run.losses(small_run.train(recipe)))
    torch.testing.assert_close(runs[True], runs[False], rtol=2e-2, atol=1e-3)


@pytest.mark.gpu
@needs_gpu
def test_a_recording_that_fails_costs_no_step():
    """Nor the steps of a kind that was recorded before, nor the random numbers after it."""
    weight, outer = nn.Parameter(torch.ones(8, device="cuda")), torch.cuda.current_stream()

    def run(x, part):
        loss = (nn.functional.dropout(weight) * x).sum()
        if part == "b":
            float(loss.detach())  # waits for the device, which a recording does not allow
        loss.backward()
        return {"loss": loss.detach()}

    steps = CapturedSteps(run, [weight])
    recorded = []
    for part in "aaaabbbbaa":
        weight.grad = None
        loss = steps({"x": torch.ones(8, device="cuda"), "part": part})["loss"]
        assert loss.isfinite() and weight.grad.unique().tolist() in ([0, 2], [0], [2])
        recorded.append(steps.graphs)
    assert recorded == [0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert torch.cuda.current_stream() == outer
