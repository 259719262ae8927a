"""MODELS: where the weights of a named model are, and which model a config is of."""

from types import SimpleNamespace

import pytest

from lorada.support.models import MODELS, named_config

RECOGNISED = [name for name, model in MODELS.items() if model.recognised_by]


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_on_the_hub_or_in_a_package(name):
    model = MODELS[name]
    assert bool(model.hub) != bool(model.package)
    assert bool(model.sizes) == bool(model.hub)  # a package has a config


@pytest.mark.parametrize("name", RECOGNISED)
def test_a_config_is_recognised_as_that_of_its_own_model_alone(name):
    config = named_config(name)
    assert [other for other, model in MODELS.items() if model.is_model_of(config)] == [name]
    sizes = MODELS[name].sizes
    assert MODELS[name].is_model_of(SimpleNamespace(**sizes))
    for key in MODELS[name].recognised_by:
        assert not MODELS[name].is_model_of(SimpleNamespace(**{**sizes, key: "another"}))


def test_a_longer_context_makes_no_other_model_of_a_llama_3():
    config = named_config("llama3-8b")
    config.max_position_embeddings = 131_072
    assert MODELS["llama3-8b"].is_model_of(config)
    assert not MODELS["llama2-7b"].is_model_of(config)
