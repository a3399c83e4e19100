"""A loss that is not finite: the step is refused, the state kept, the text named, the run resumable."""

import contextlib
import re
from pathlib import Path

import pytest
import torch
from poisoned import Poison

import small_run
import tiny
from forked import Forked
from linearard.cli.main import main
from linearard.distill import RestorationModule
from linearard.errors import NonFiniteLossError
from linearard.recipe import RestorationConfig, recipe_from_dict
from linearard.train import prepare_run
from linearard.train.clipping import clip_gradients
from linearard.train.trainer import RestorationTrainer


@pytest.fixture(scope="module")
def undisturbed(base_folder, tmp_path_factory):
    """Weights of the run that nothing happens to. Dropout is on, so the random state counts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return small_run.final_bytes(small_run.train(small_run.small_recipe(folder, base_folder)))


def train_windows(recipe, stage, place):
    """The windows of a stage, by the number that a refusal gives them."""
    run = prepare_run(
        recipe_from_dict(recipe | {"output_dir": str(place / "elsewhere")}), progress=False
    )
    run.claim.close()
    return run.texts[stage].windows


# Stage 1 takes two calls a step, three steps an epoch, and saves every second step; stage 2 takes one
# call a step and saves every step.
@pytest.mark.parametrize(
    ("call", "stage", "step", "kept"),
    [
        (1, "restoration", 1, None),
        (4, "restoration", 2, "stage1-restoration/checkpoint-1"),
        (7, "restoration", 4, "stage1-restoration/checkpoint-3"),
        (10, "restoration", 5, "stage1-restoration/checkpoint-4"),
        (14, "cpt", 2, "stage2-cpt/checkpoint-1"),
    ],
    ids=["first step", "unsaved state", "new epoch", "saved state", "second stage"],
)
def test_a_bad_loss(
    call, stage, step, kept, undisturbed, tmp_path, base_folder, monkeypatch, capsys
):
    recipe = small_run.small_recipe(tmp_path, base_folder)
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))
    run = Path(recipe["output_dir"])
    with monkeypatch.context() as patch:
        poison = Poison(RestorationModule.forward, call)
        patch.setattr(RestorationModule, "forward", poison)
        assert main(["train", path, "--quiet"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "expected finite losses and gradients, got losses [" in message and "nan" in message
    assert f"in step {step} of stage '{stage}', blocks " in message
    assert "The step was refused" in message and "go on with --resume" in message
    # Exactly the blocks of the spoilt batch are named, and the first is shown.
    named = [int(n) for n in re.search(r"blocks ([\d, ]+) \(", message)[1].split(", ")]
    windows = train_windows(recipe, stage, tmp_path)
    spoilt = {tuple(ids) for ids in poison.input_ids.tolist()}
    assert {tuple(windows.window(n).tolist()) for n in named} == spoilt
    shown = tiny.tiny_tokenizer().decode(windows.window(named[0])[:32])
    assert repr(shown) in message
    saved = sorted(str(p.parent.relative_to(run)) for p in run.glob("stage*/*/complete.json"))
    if kept is None:
        assert not saved and "is kept in" not in message
    else:
        assert f"the state of step {step - 1} is kept in {run / kept}" in message
        assert kept in saved and kept.replace(str(step - 1), str(step)) not in saved
    assert main(["train", path, "--quiet", "--resume"]) == 0
    assert small_run.final_bytes(run) == undisturbed


@pytest.mark.parametrize("graphs", [False, True])
def test_a_bad_gradient_behind_a_good_loss(graphs, tmp_path, base_folder, monkeypatch, capsys):
    """No loss tells which block it was, so all of the step are named.

    Steps that could be graphs are clipped by the package; on a CPU they stay plain.
    """

    def spoil(loss):
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    recipe = small_run.small_recipe(tmp_path, base_folder)
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))
    poison = Poison(RestorationModule.forward, 3, spoil)
    monkeypatch.setattr(RestorationModule, "forward", poison)
    monkeypatch.setattr("linearard.train.trainer._can_be_captured", lambda args: graphs)
    clipped = []
    monkeypatch.setattr(
        "linearard.train.trainer.clip_gradients",
        lambda *given: clipped.append(clip_gradients(*given)) or clipped[-1],
    )
    assert main(["train", path, "--quiet"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"losses \[\d\.\d+, \d\.\d+\] with gradient norm nan in step 2", message)
    assert len(re.search(r"blocks ([\d, ]+) \(", message)[1].split(", ")) == 4
    # A norm serves its own step alone: the first was good.
    assert [bool(norm.isfinite()) for norm in clipped] == [True, False] * graphs


@pytest.mark.parametrize("graphs", [False, True])
def test_clipping_hands_its_norm_to_one_step(graphs, tmp_path, monkeypatch):
    monkeypatch.setattr("linearard.train.trainer._can_be_captured", lambda args: graphs)
    restorable = tiny.tiny_restorable()
    arguments = RestorationConfig(
        output_dir=str(tmp_path), window=41, use_cpu=True, max_grad_norm=2.0
    )
    blocks = [{"input_ids": tiny.tokens(1, 41)[0]}]
    trainer = RestorationTrainer(restorable, arguments, blocks)
    parameter, micro_step = (
        restorable.adapter.parameters()[0],
        (torch.tensor(1.0), torch.tensor([0])),
    )
    for value, good in ((3.0, True), (float("nan"), False), (3.0, True)):
        parameter.grad = torch.full_like(parameter, value)
        trainer._clip_grad_norm(trainer.model)
        trainer._micro_steps = [micro_step]
        with (
            contextlib.nullcontext()
            if good
            else pytest.raises(NonFiniteLossError, match="norm nan")
        ):
            trainer.refuse_bad_step()
        assert not good or parameter.grad.norm() <= 2.001
    parameter.grad.fill_(float("nan"))  # a step that nothing clips
    trainer._micro_steps = [micro_step]
    with pytest.raises(NonFiniteLossError, match="norm nan"):
        trainer.refuse_bad_step()


def test_a_bad_loss_in_one_of_two_processes(tmp_path, base_folder):
    """Every process refuses, one speaks, the other's block is named, and a resume is exact."""
    recipes, paths = [], []
    for name in ("undisturbed", "spoilt"):
        # One stage with dropout: the random states of both processes count.
        recipe = small_run.one_stage(tmp_path / name, base_folder, save_steps=10)
        recipe["adapter"]["dropout"] = 0.1
        recipes.append(recipe)
        paths.append(str(small_run.write_recipe(recipe, tmp_path / name / "recipe.yaml")))
    script = str(Path(__file__).with_name("poisoned.py"))
    arguments = [script, "3", "1", *paths]
    with Forked(arguments, processes=2, environment=small_run.environment()) as running:
        result = running.wait()
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("linearard: ")]
    assert len(lines) == 1, result.stderr
    (line,) = lines
    losses, block = re.search(r"losses \[(.*?)\] .* blocks (\d+) \(", line).groups()
    assert [loss == "nan" for loss in losses.split(", ")] == [False, True]
    assert "the state of step 2 is kept in" in line
    shown = train_windows(recipes[1], "only", tmp_path).window(int(block))[:32]
    assert repr(tiny.tiny_tokenizer().decode(shown)) in line
    result = small_run.launch("train", paths[1], "--quiet", "--resume", processes=2)
    assert result.returncode == 0, result.stderr
    undisturbed, resumed = (small_run.final_bytes(Path(r["output_dir"])) for r in recipes)
    assert resumed == undisturbed


def test_a_gradient_scaler_mends_infinite_gradients_itself(tmp_path):
    """float16 training begins with overflows on purpose; only its losses must be finite."""
    restorable = tiny.tiny_restorable()
    arguments = RestorationConfig(output_dir=str(tmp_path), window=41, use_cpu=True)
    blocks = [{"input_ids": tiny.tokens(1, 41)[0]}]
    trainer = RestorationTrainer(restorable, arguments, blocks)
    parameter = restorable.adapter.parameters()[0]
    parameter.grad = torch.full_like(parameter, float("inf"))
    trainer._micro_steps = [(torch.tensor(1.0), torch.tensor([0]))]
    with pytest.raises(NonFiniteLossError, match="gradient norm inf"):
        trainer.refuse_bad_step()
    trainer.accelerator.scaler = object()
    trainer._micro_steps = [(torch.tensor(1.0), torch.tensor([0]))]
    trainer.refuse_bad_step()
    trainer._micro_steps = [(torch.tensor(float("nan")), torch.tensor([0]))]
    with pytest.raises(NonFiniteLossError, match="blocks 0 "):
        trainer.refuse_bad_step()


def test_too_little_memory(tmp_path, base_folder, monkeypatch, capsys):
    def forward(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    monkeypatch.setattr(RestorationModule, "forward", forward)
    recipe = small_run.small_recipe(tmp_path, base_folder)
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))
    assert main(["train", path, "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "enough memory for stage 'restoration', got CUDA out of memory. Set" in line
    assert "gradient_checkpointing" in line and "per_device_train_batch_size" in line


def test_an_interrupted_run_says_how_to_go_on(
    undisturbed, tmp_path, base_folder, monkeypatch, capsys
):
    def spoil(loss):
        raise KeyboardInterrupt

    recipe = small_run.small_recipe(tmp_path, base_folder)
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))
    with monkeypatch.context() as patch:
        patch.setattr(RestorationModule, "forward", Poison(RestorationModule.forward, 8, spoil))
        assert main(["train", path, "--quiet"]) == 130
    assert capsys.readouterr().err == "linearard: interrupted; go on with --resume\n"
    assert main(["train", path, "--quiet", "--resume"]) == 0
    assert small_run.final_bytes(Path(recipe["output_dir"])) == undisturbed
