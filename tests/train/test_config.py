"""What a stage's arguments mean for the trainer."""

import dataclasses

import pytest

from linearard.recipe import RestorationConfig


def config(tmp_path, **fields):
    return RestorationConfig(output_dir=str(tmp_path), window=41, use_cpu=True, **fields)


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_recomputation_by_either_name_is_ours(name, tmp_path):
    """transformers 5.24 renames it; Trainer may not switch it on by itself under any name."""
    if name not in {field.name for field in dataclasses.fields(RestorationConfig)}:
        pytest.skip(f"this version of transformers has no {name}")
    args = config(tmp_path, **{name: True})
    assert args.recompute and not args.records_graphs
    assert not getattr(args, name)
    assert not config(tmp_path).recompute


def test_what_cannot_be_recorded_is_not(tmp_path):
    assert config(tmp_path).records_graphs
    assert not config(tmp_path, cuda_graphs=False).records_graphs
    assert not config(tmp_path, offload_teacher=True).records_graphs
    for optimizer in ("lomo", "galore_adamw_layerwise"):  # they step within the backward pass
        assert not config(tmp_path, optim=optimizer).records_graphs
