"""`deterministic: true`: PyTorch's deterministic algorithms while a run trains, and no longer."""

import pytest
import torch

import small_run
from linearard.capture.sdpa import causal_attention
from linearard.cli.main import main
from linearard.distill import RestorationModule
from linearard.errors import DeviceError
from linearard.train.determinism import deterministic_algorithms

CPU = torch.device("cpu")


@pytest.mark.parametrize("wanted", [True, False])
def test_a_run(wanted, tmp_path, base_folder, monkeypatch):
    seen = set()
    forward = RestorationModule.forward

    def look(self, *args, **kwargs):
        seen.add(torch.are_deterministic_algorithms_enabled())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(RestorationModule, "forward", look)
    recipe = small_run.one_stage(tmp_path, base_folder, sequences=2)
    small_run.train(recipe | {"deterministic": wanted})
    assert seen == {wanted}
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_has_no_such_form_is_refused_in_words():
    with (
        pytest.raises(DeviceError, match="put_ does not have a deterministic implementation"),
        deterministic_algorithms(True, CPU),
    ):
        torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_errors_and_what_was_on_before_stay():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(RuntimeError, match=r"^words$"), deterministic_algorithms(True, CPU):
            raise RuntimeError("words")
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_stage_does_not_decide_it(tmp_path, base_folder, capsys):
    recipe = small_run.one_stage(tmp_path, base_folder, full_determinism=True)
    path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")
    assert main(["train", str(path), "--quiet"]) == 2
    assert "Set deterministic at the top of the recipe." in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("width", [64, 128])
def test_gradients_of_attention(width):
    make = torch.Generator("cuda").manual_seed(0)
    shapes = [(2, heads, 2048, width) for heads in (8, 4, 4)]
    q, k, v = (
        torch.randn(s, generator=make, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for s in shapes
    )
    with deterministic_algorithms(True, torch.device("cuda")):
        output = causal_attention(q, k, v, width**-0.5)
        upstream = torch.randn_like(output)
        results = [
            torch.autograd.grad(causal_attention(q, k, v, width**-0.5), (q, k, v), upstream)
            for _ in range(10)
        ]
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))
