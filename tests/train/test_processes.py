"""How processes share a stage, and how others go on with it."""

import json

import pytest

from linearard.errors import CheckpointError, RecipeError
from linearard.recipe.stage import RestorationConfig
from linearard.train import processes
from tiny import tiny_model


class Stage:
    """What `processes` reads of a stage's arguments."""

    def __init__(self, folder, *, world=1, sharing=1, accumulate=1, parts=()):
        self.output_dir, self.world_size, self.parts = str(folder), world, parts
        self.sequence_parallel, self.gradient_accumulation_steps = sharing, accumulate
        self.all_parts = {"": RestorationConfig(output_dir=str(folder), window=48, use_cpu=True)}


@pytest.mark.parametrize(
    ("world", "sharing", "readers"), [(1, 4, 1), (2, 4, 1), (4, 2, 2), (6, 4, 3), (8, 1, 8)]
)
def test_readers(tmp_path, world, sharing, readers):
    """Of other numbers of processes, the greatest common divisor share."""
    assert processes.readers(Stage(tmp_path, world=world, sharing=sharing)) == readers


@pytest.mark.parametrize(
    ("started", "now", "before", "after"), [(2, 1, 2, 4), (1, 2, 4, 2), (4, 2, 3, 6), (2, 2, 3, 3)]
)
def test_a_step_keeps_its_batches(tmp_path, started, now, before, after):
    stage = Stage(tmp_path, world=now, accumulate=before)
    notes = processes.keep_steps({"one": stage}, started)
    assert stage.gradient_accumulation_steps == after
    assert bool(notes) == (started != now)


def test_batches_that_cannot_be_spread(tmp_path):
    with pytest.raises(CheckpointError, match="the 3 batches of a step of stage 'one'"):
        processes.keep_steps({"one": Stage(tmp_path, world=2, accumulate=3)}, 1)


def test_parts_and_more_readers(tmp_path):
    """They would read batches of different parts at a time; not where they share windows."""
    with pytest.raises(CheckpointError, match="batches of one part of stage 'one' at a time"):
        processes.keep_steps({"one": Stage(tmp_path, world=2, accumulate=4, parts=("a",))}, 1)
    shared = Stage(tmp_path, world=2, sharing=2, accumulate=4, parts=("a",))
    assert processes.keep_steps({"one": shared}, 1)


@pytest.mark.parametrize(("size", "what"), [(3, "query heads of the model"), (32, "query heads")])
def test_heads_that_cannot_be_shared(tmp_path, size, what):
    stage = Stage(tmp_path, world=size, sharing=size)
    with pytest.raises(RecipeError, match=what):
        processes.check_sharing("one", stage, tiny_model().config)


def test_windows_that_cannot_be_shared(tmp_path):
    stage = Stage(tmp_path, world=4, sharing=4)
    stage.all_parts[""].window = 42
    with pytest.raises(RecipeError, match=r"tokens of stages\.one\.window"):
        processes.check_sharing("one", stage, tiny_model().config)


def test_launchers_with_engines_of_their_own(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match=r"launch/accelerate.yaml.*asks for FSDP.*model.sharded"):
        processes.check_launcher()


def test_the_shipped_configuration_asks_for_processes_alone():
    from pathlib import Path

    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(Path(__file__).parents[2] / "launch" / "accelerate.yaml"))
    assert found.distributed_type.value == "MULTI_GPU" and found.num_processes == 8
    assert not (found.fsdp_config or found.deepspeed_config)
    assert json.dumps(found.mixed_precision) == '"no"'


def test_a_lost_process_is_named(monkeypatch):
    """The error of a collective becomes one that says where training was."""
    from linearard.errors import DeviceError
    from linearard.train import peers

    class Accelerator:
        num_processes = 2

        def wait_for_everyone(self):
            pass

    class Store:
        def clone(self):
            return self

        def set(self, key, value):
            pass

        def multi_get(self, keys):
            return [b"1"] * len(keys)

    monkeypatch.setattr(peers.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(peers.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(peers.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(peers.dist.distributed_c10d, "_get_default_store", Store)
    where = "step 3 of stage 'cpt'"
    with (
        pytest.raises(DeviceError, match=f"go on together in {where}.*closed by peer.*--resume"),
        peers.watching_peers(Accelerator(), lambda: where, 60.0),
    ):
        raise RuntimeError("[../third_party/gloo/pair.cc] Connection closed by peer")
    with (
        pytest.raises(RuntimeError, match="another"),
        peers.watching_peers(Accelerator(), lambda: where, 60.0),
    ):
        raise RuntimeError("another kind of error")
