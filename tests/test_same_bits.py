"""What counts as the same bits, and that a deterministic run on this CPU ends in them."""

import sys

import pytest
import torch

from benchmarks import bit_operations, same_bits
from benchmarks.small_runs import write_random_model


def test_operations_of_a_cpu():
    found = bit_operations.distinct_results("cpu", 2)
    assert not torch.are_deterministic_algorithms_enabled()
    not_here = {"cuDNN's attention", "memory-efficient attention"}
    not_here |= {name for name in found if name.startswith("relation KL")}
    for name, modes in found.items():
        assert set(modes) == {"any_order", "deterministic"}
        if name in not_here:
            assert all(isinstance(said, str) for said in modes.values()), name
        else:
            assert list(modes.values()) == [1, 1], name


def test_another_result_is_seen():
    draw = torch.Generator().manual_seed(0)
    calls = [torch.zeros(3), torch.tensor([0.0, 0.0, -0.0]), torch.zeros(3)]
    assert bit_operations._distinct(lambda: [calls.pop()], 3, "cpu") == 2
    assert bit_operations._distinct(lambda: [torch.rand(2, generator=draw)], 4, "cpu") == 4


def test_trainings(tmp_path):
    model = write_random_model(tmp_path / "model", 64, on_gpu=False)
    found = [
        same_bits.train(tmp_path / str(i), model, "cpu", 64, deterministic=True, seed=seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    assert found[0] == found[1] != found[2]


def test_processes_that_fail_are_no_result():
    good = [sys.executable, "-c", "print('words'); print([1, 2])"]
    assert same_bits.together([good, good]) == [[1, 2], [1, 2]]
    with pytest.raises(RuntimeError, match=r"exit codes \[0, 3\]"):
        same_bits.together([good, [sys.executable, "-c", "raise SystemExit(3)"]])
