"""PEFT's contracts that its decoder tests run for LoRA only, or not at all, with our configs."""

import pytest
from lorada_plugin import CONFIGS, GRALORA, models
from tests.test_decoder_models import TestDecoderModels as DecoderTests
from tests.test_decoder_models import set_init_weights_false
from tests.testing_common import PeftCommonTester

from tests import testing_common

CONTRACTS = (
    "delete_unknown_adapter_raises",
    "generate_with_mixed_adapter_batches_and_beam_search",
    "load_model_low_cpu_mem_usage",
    "load_multiple_adapters",
    "merge_layers_is_idempotent",
    "mixed_adapter_batches",
    "safe_merge",
    "save_pretrained_adapter_name_substring",
)


class TestMoreContracts(PeftCommonTester):
    transformers_class = DecoderTests.transformers_class
    prepare_inputs_for_testing = DecoderTests.prepare_inputs_for_testing

    @pytest.mark.parametrize("model_id", models())
    @pytest.mark.parametrize(("config_cls", "config_kwargs"), CONFIGS)
    @pytest.mark.parametrize("contract", CONTRACTS)
    def test_contract(self, contract, model_id, config_cls, config_kwargs, monkeypatch):
        if "mixed" in contract:
            if GRALORA in config_kwargs.get("parts", []):
                pytest.skip("GraLoRA serves one adapter at a time")
            # The contract names the config classes it knows to be able to do it.
            monkeypatch.setattr(testing_common, "LoraConfig", config_cls)
        config_kwargs = set_init_weights_false(config_cls, config_kwargs)
        getattr(self, f"_test_{contract}")(model_id, config_cls, config_kwargs)
