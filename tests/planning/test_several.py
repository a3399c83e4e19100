"""Plans of several GPUs: arithmetic against counts by hand, and which way is chosen."""

import pytest

import tiny
from linearard.planning import Layout, Links, choose_layout, plan_several, planned_recipe
from linearard.recipe import recipe_from_dict
from linearard.train.stages import stage_arguments

_STAGE = {"window": 48, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}


@pytest.fixture(scope="module")
def planned():
    source = {
        "model": {"name": "nowhere", "device": "cpu", "dtype": "float32"},
        "rope": {"rope_type": "linear", "factor": 4},
        "adapter": {"r": 4, "alpha": 8},
        "data": {"train": "text", "validation": "text"},
        "stages": {
            "restoration": _STAGE,
            "cpt": {**_STAGE, "objective": {"relations": {}, "lm_weight": 1}},
        },
    }
    config = tiny.tiny_model(num_hidden_layers=7).config
    return planned_recipe(
        lambda overrides: recipe_from_dict(source, overrides), stage_arguments, None, config
    )


def plan(planned, *layout, **links):
    options = {"native_window": planned.native_window, "links": Links(**links) if links else None}
    return plan_several(planned.plan, planned.stages, Layout(*layout), **options)


def test_what_copies_send(planned):
    """Twice the gradients but for one's own share, once a step: float32."""
    trained = planned.plan.shape.trained_parameters
    for step in plan(planned, 4).steps:
        assert step.reduced == pytest.approx(2 * 3 / 4 * 4 * trained)
        assert step.gathered == step.exchanged == 0


def test_what_shares_send(planned):
    """Others' weights for each pass of each batch: teacher, student and back; CPT has no teacher."""
    shape = planned.plan.shape
    inside = sum(p.inputs * p.outputs for layer in shape.layers for p in layer.projections)
    everything = 4 * (inside + shape.trained_parameters)
    restoration, cpt = plan(planned, 4, 1, True).steps
    assert restoration.gathered == pytest.approx(2 * 3 * 3 / 4 * everything)
    assert cpt.gathered == pytest.approx(2 * 2 * 3 / 4 * everything)
    assert restoration.reduced == pytest.approx(2 * 3 / 4 * 4 * shape.trained_parameters)


def test_what_a_shared_window_sends(planned):
    """q, k, v and what comes of them, of tokens that others take: seven layers, 4 and 2 heads of 8."""
    _, cpt = plan(planned, 2, 1, False, 2).steps
    passes = 2 + 1  # forward, backward, recomputed
    width = 7 * 2 * (4 + 2) * 8
    assert cpt.exchanged == pytest.approx(2 * passes * 4 * 48 / 2 / 2 * width)


def test_time_of_sending(planned):
    near, far = (
        plan(planned, 4, within=10.0, between=1.0),
        plan(planned, 4, 2, within=10.0, between=1.0),
    )
    for one, other in zip(near.steps, far.steps, strict=True):
        assert one.communicating == pytest.approx(one.sent / 10)
        assert other.communicating == pytest.approx(other.sent)


def test_memory_falls(planned):
    copies, shares, windows = (plan(planned, 4, 1, *rest) for rest in ((), (True,), (True, 4)))
    assert copies.memory > shares.memory > windows.memory
    assert copies.memory > planned.plan.needed  # what DistributedDataParallel sends from


def test_the_first_way_that_fits(planned):
    choose = {"native_window": planned.native_window}
    several = (planned.plan, planned.stages, 4, 1)
    ways = [plan(planned, 4, 1, *rest) for rest in ((False, 1), (True, 1), (True, 2), (True, 4))]
    for way in ways:
        found = choose_layout(*several, way.memory, **choose)
        assert found.layout == way.layout
    assert choose_layout(*several, ways[-1].memory - 1, **choose) is None
