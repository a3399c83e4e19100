"""The table of architectures names what transformers has."""

from importlib import import_module

import pytest

from linearard.architectures import ARCHITECTURES, architecture, architecture_of_package

FUSED = {kind: known for kind, known in ARCHITECTURES.items() if known.fused}
ENDINGS = {"norm": "RMSNorm", "mlp": "MLP", "attention": "Attention"}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_model_type_exists(model_type):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert model_type in CONFIG_MAPPING_NAMES


@pytest.mark.parametrize("model_type", FUSED)
def test_fused_classes_exist(model_type):
    package = FUSED[model_type].package or model_type
    module = import_module(f"transformers.models.{package}.modeling_{package}")
    for kind in FUSED[model_type].fused:
        assert hasattr(module, f"{package.capitalize()}{ENDINGS[kind]}")
    assert architecture_of_package(package) is FUSED[model_type] is architecture(model_type)


def test_an_unknown_architecture_has_nothing_of_its_own():
    assert architecture("unheard_of") == architecture_of_package("") == type(architecture("x"))()
