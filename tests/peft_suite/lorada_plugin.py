"""A pytest plugin for PEFT's own tests: our configs and tiny local models in their lists.

``test_peft_suite.py`` loads it with ``-p lorada_plugin`` in a process that runs inside an unpacked
sdist of peft. PEFT's files stay as they are; only the lists that parametrise them are filled anew,
and the functions that tell methods apart by class or by name learn of ours.
"""

import contextlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from cases import CONFIG_CLASSES, CUSTOM, configs, lorada_config_on
from peft import PeftConfig

from lorada.tuners.base.part_config import LoradaPeftConfig


def models(family: str) -> list[str]:
    """The folders of the tiny models of a family."""
    folder = Path(os.environ["LORADA_SUITE_MODELS"], family)
    return sorted(str(path) for path in folder.iterdir()) if folder.is_dir() else []


def pytest_configure(config: pytest.Config) -> None:
    """Fill PEFT's lists before pytest reads the parametrisation from them."""
    sys.path.insert(0, str(config.rootpath))
    _stub_diffusers()
    from tests import (
        test_config,
        test_custom_models,
        test_decoder_models,
        test_encoder_decoder_models,
        test_feature_extraction_models,
        test_seq_classifier,
        testing_common,
    )

    test_decoder_models.ALL_CONFIGS[:] = configs("CAUSAL_LM")
    test_decoder_models.PEFT_DECODER_MODELS_TO_TEST[:] = models("decoder")
    test_decoder_models.SMALL_GRID_MODELS[:] = models("decoder")[:1]
    test_encoder_decoder_models.ALL_CONFIGS[:] = configs("SEQ_2_SEQ_LM")
    test_encoder_decoder_models.PEFT_ENCODER_DECODER_MODELS_TO_TEST[:] = models("encoder-decoder")
    test_feature_extraction_models.ALL_CONFIGS[:] = configs("FEATURE_EXTRACTION")
    test_feature_extraction_models.PEFT_FEATURE_EXTRACTION_MODELS_TO_TEST[:] = models("features")
    test_seq_classifier.ALL_CONFIGS[:] = configs("SEQ_CLS")
    test_seq_classifier.PEFT_SEQ_CLS_MODELS_TO_TEST[:] = models("classifier")
    test_custom_models.TEST_CASES[:] = CUSTOM
    test_custom_models.ALL_PEFT_CONFIG_CLASSES[:] = [lorada_config_on]
    test_config.PEFT_MODELS_TO_TEST[:] = [(os.environ["LORADA_SUITE_MODELS"] + "/adapter", "main")]
    _parametrise_anew(test_config.TestPeftConfig, test_config.ALL_CONFIG_CLASSES, CONFIG_CLASSES)
    for module in [m for name, m in sys.modules.items() if name.startswith("tests.test")]:
        # Theirs goes online for the first use of each model, and waits where there is no network.
        if hasattr(module, "hub_online_once"):
            module.hub_online_once = contextlib.nullcontext
    # It means BEFT alone but asks ``isinstance`` of a class, and so skips every merge on a Llama.
    test_decoder_models.check_beft_config = lambda *args: None
    # It takes "lora" in the name of a config's class for LoRA.
    test_feature_extraction_models.skip_deberta_lora_tests = lambda *args: None
    _tell_what_merges(testing_common)


def _parametrise_anew(tests: type, theirs: Any, ours: Any) -> None:
    """Put our cases into marks that were made of a tuple, which cannot be filled in place."""
    for function in vars(tests).values():
        marks = getattr(function, "pytestmark", [])
        for i, mark in enumerate(marks):
            if mark.name == "parametrize" and mark.args[1] is theirs:
                marks[i] = pytest.mark.parametrize(mark.args[0], ours).mark


def _tell_what_merges(common: Any) -> None:
    theirs = common._skip_if_merging_not_supported

    def skip_if_merging_not_supported(
        model_id: str, config_cls: type[PeftConfig], config_kwargs: dict[str, Any]
    ) -> None:
        if not getattr(config_cls(**config_kwargs), "mergeable", True):
            pytest.skip("a map, bottleneck, prefix or mixture of experts is no matrix")
        theirs(model_id, config_cls, config_kwargs)

    for module in [common, *(m for n, m in sys.modules.items() if n.startswith("tests.test_"))]:
        if hasattr(module, "_skip_if_merging_not_supported"):
            module._skip_if_merging_not_supported = skip_if_merging_not_supported


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run only what meets a config of ours."""
    kept, out = [], []
    for item in items:
        case = getattr(getattr(item, "callspec", None), "params", {})
        ours = any(
            value is lorada_config_on
            or (isinstance(value, type) and issubclass(value, LoradaPeftConfig))
            for value in case.values()
        )
        (kept if ours else out).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=out)


def _stub_diffusers() -> None:
    """testing_common imports one class of diffusers, which these tests never use."""
    if importlib.util.find_spec("diffusers") is not None:
        return
    stub = types.ModuleType("diffusers")
    stub.__spec__ = importlib.machinery.ModuleSpec("diffusers", None)
    stub.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})  # type: ignore
    sys.modules["diffusers"] = stub
