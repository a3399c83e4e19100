"""The fast way trains as the plain way does (`python -m benchmarks same_training`: on a real model).

On a CPU there are neither kernels nor graphs: there the fused steps run as plain PyTorch.
"""

import statistics

import pytest
import torch

import tiny
from benchmarks.same_training import compare

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
ON_A_GPU = [
    pytest.param(name, "cuda", 20, 512, marks=[pytest.mark.gpu, needs_gpu])
    for name in ("llama", "mistral", "qwen2", "qwen3")
]


@pytest.mark.parametrize(
    ("architecture", "device", "steps", "window"), [("mistral", "cpu", 6, 64), *ON_A_GPU]
)
def test_fast_training_is_plain_training(architecture, device, steps, window):
    # Kernels want head_dim 64; what stands in for them on a CPU computes bfloat16 slowly.
    size = 256 if device == "cuda" else 128
    shape = {"hidden_size": size, "intermediate_size": 2 * size, "head_dim": size // 4}
    shape |= {"max_position_embeddings": 1024, "initializer_range": 0.05}
    if architecture == "mistral":
        shape["sliding_window"] = window * 3 // 8

    def make():
        model = tiny.tiny_model(architecture, **shape)
        for parameter in model.parameters():  # frequencies stay float32
            parameter.data = parameter.data.bfloat16()
        made = tiny.tiny_restorable(architecture, model=model, r=16, alpha=32.0)
        tiny.perturb_adapter(made, size=0.02)
        made.fused.everywhere = True
        made.model.to(device)
        return made

    found = compare(make, steps, window)
    assert found["last_loss"] < 0.95 * found["first_loss"]
    # the nudge is one rounding of one kind; the fast way rounds in other places throughout
    assert found["fast_mean"] < 3 * max(found["noise_mean"]) + 2e-3
    assert found["fast_weights"] < 3 * max(found["noise_weights"]) + 2e-2
    assert found["float32_fast_mean"] < 1.5 * max(found["float32_plain_mean"]) + 2e-3
    assert found["float32_fast_weights"] < 1.25 * max(found["float32_plain_weights"]) + 1e-2
    fast, plain = (statistics.median(found[f"gradient_{way}"]) for way in ("fast", "plain"))
    assert 0 < fast < 1.25 * plain
