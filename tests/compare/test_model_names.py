"""The names of several models: one folder each, and none of them twice."""

import pytest

from lorada.compare.model_names import folders_of_models, models_in


def test_models_are_named_with_commas_between():
    assert models_in("minilm-l6,smollm2-135m") == ["minilm-l6", "smollm2-135m"]


def test_each_model_has_a_folder_of_its_own():
    assert folders_of_models(["a/base", "b/base", "c/large"]) == {
        "a/base": "a--base",
        "b/base": "b--base",
        "c/large": "large",
    }


def test_a_model_that_is_named_twice_is_refused_under_either_name():
    twice = ["minilm-l6", "sentence-transformers/all-MiniLM-L6-v2"]
    with pytest.raises(ValueError, match="all-MiniLM-L6-v2 twice"):
        folders_of_models(twice)
