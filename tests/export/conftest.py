"""Makers of trained models."""

import pytest

import tiny


@pytest.fixture
def trained(base_folder):
    """Make a tiny restorable model over the saved base, its weights moved as training would."""

    def make(scaling=tiny.LINEAR, base=base_folder, size=0.3, **kwargs):
        restorable = tiny.tiny_restorable(scaling=scaling, name=str(base), **kwargs)
        tiny.perturb_adapter(restorable, size=size)
        return restorable

    return make
