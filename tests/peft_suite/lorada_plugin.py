"""A pytest plugin for PEFT's own decoder tests: our configs and tiny local models in their lists.

``test_peft_suite.py`` loads it with ``-p lorada_plugin`` in a process that runs inside an unpacked
sdist of peft. PEFT's files stay as they are; only the two lists that parametrise them are filled
anew, and the one function that knows which methods cannot be merged learns of ours.
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
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

from lorada import BottleneckConfig, LmamConfig, LoradaConfig
from lorada.tuners.attach import AttachedModel

# Parts as dictionaries, so that every test makes its own.
LMAM = {"peft_type": "LMAM", "rank": 2, "length": 8, "inverse_scale": 1.0}
LORA = {"peft_type": "LORA", "r": 4}
BOTTLENECK = {"peft_type": "BOTTLENECK", "rank": 4}
# On LoRA's modules, so the two are nested; its parameters carry "lora" in their names, which PEFT's
# tests take for the sign of what may train.
GRALORA = {"peft_type": "GRALORA", "r": 4, "gralora_k": 2}

CONFIGS: list[tuple[type[PeftConfig], dict[str, Any]]] = [
    (LmamConfig, {"rank": 2, "length": 8, "inverse_scale": 1.0, "task_type": "CAUSAL_LM"}),
    (BottleneckConfig, {"rank": 4, "task_type": "CAUSAL_LM"}),
    (LoradaConfig, {"parts": [LMAM, LORA, BOTTLENECK], "task_type": "CAUSAL_LM"}),
    (LoradaConfig, {"parts": [LORA, GRALORA], "task_type": "CAUSAL_LM"}),  # runs the merge tests
]


def models() -> list[str]:
    """The folders of the tiny models."""
    return sorted(str(path) for path in Path(os.environ["LORADA_SUITE_MODELS"]).iterdir())


def pytest_configure(config: pytest.Config) -> None:
    """Fill PEFT's lists before pytest reads the parametrisation from them."""
    sys.path.insert(0, str(config.rootpath))
    _stub_diffusers()
    from tests import test_decoder_models as decoder
    from tests import testing_common as common

    decoder.ALL_CONFIGS[:] = CONFIGS
    decoder.PEFT_DECODER_MODELS_TO_TEST[:] = models()
    decoder.SMALL_GRID_MODELS[:] = models()[:1]
    # Theirs goes online for the first use of each model, and waits where there is no network.
    common.hub_online_once = decoder.hub_online_once = contextlib.nullcontext
    # It means BEFT alone but asks ``isinstance`` of a class, and so skips every merge on a Llama.
    decoder.check_beft_config = lambda *args: None
    theirs = common._skip_if_merging_not_supported

    def skip_if_merging_not_supported(
        model_id: str, config_cls: type[PeftConfig], config_kwargs: dict[str, Any]
    ) -> None:
        if _tuners(config_cls(**config_kwargs), AttachedModel):
            pytest.skip("a map or a bottleneck cannot be merged into the weights")
        theirs(model_id, config_cls, config_kwargs)

    common._skip_if_merging_not_supported = skip_if_merging_not_supported


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out bottlenecks on OPT, whose FFN is no module of its own."""
    bottleneck = PEFT_TYPE_TO_TUNER_MAPPING["BOTTLENECK"]  # type: ignore[index]
    out = []
    for item in items:
        case = getattr(getattr(item, "callspec", None), "params", {})
        if "OPT" in case.get("model_id", "") and case.get("config_cls") in dict(CONFIGS):
            made = case["config_cls"](**case["config_kwargs"])
            out += [item] if _tuners(made, bottleneck) else []
    items[:] = [item for item in items if item not in out]
    config.hook.pytest_deselected(items=out)


def _tuners(config: Any, kind: type) -> list[type]:
    """The tuners of a config and its parts that are of a kind."""
    types_ = [part.peft_type for part in getattr(config, "parts", [config])]
    return [tuner for t in types_ if issubclass(tuner := PEFT_TYPE_TO_TUNER_MAPPING[t], kind)]


def _stub_diffusers() -> None:
    """testing_common imports one class of diffusers, which the decoder tests never use."""
    if importlib.util.find_spec("diffusers") is not None:
        return
    stub = types.ModuleType("diffusers")
    stub.__spec__ = importlib.machinery.ModuleSpec("diffusers", None)
    stub.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})  # type: ignore
    sys.modules["diffusers"] = stub
