"""PEFT's contracts that its tests run for LoRA only, or not at all, with our configs."""

import pytest
from cases import configs
from lorada_plugin import models
from tests.test_decoder_models import TestDecoderModels as DecoderTests
from tests.test_encoder_decoder_models import TestEncoderDecoderModels as EncoderDecoderTests
from tests.testing_common import PeftCommonTester
from tests.testing_utils import set_init_weights_false

CONTRACTS = (
    "delete_unknown_adapter_raises",
    "load_model_low_cpu_mem_usage",
    "load_multiple_adapters",
    "merge_layers_is_idempotent",
    "safe_merge",
    "save_pretrained_adapter_name_substring",
)


def keep(contract, tests, model_id, config_cls, config_kwargs):
    config_kwargs = set_init_weights_false(config_cls, config_kwargs)
    getattr(tests, f"_test_{contract}")(model_id, config_cls, config_kwargs)


class TestMoreDecoderContracts(PeftCommonTester):
    transformers_class = DecoderTests.transformers_class
    prepare_inputs_for_testing = DecoderTests.prepare_inputs_for_testing

    @pytest.mark.parametrize("model_id", models("decoder"))
    @pytest.mark.parametrize(("config_cls", "config_kwargs"), configs("CAUSAL_LM"))
    @pytest.mark.parametrize("contract", CONTRACTS)
    def test_contract(self, contract, model_id, config_cls, config_kwargs):
        keep(contract, self, model_id, config_cls, config_kwargs)


class TestMoreEncoderDecoderContracts(PeftCommonTester):
    transformers_class = EncoderDecoderTests.transformers_class
    prepare_inputs_for_testing = EncoderDecoderTests.prepare_inputs_for_testing

    @pytest.mark.parametrize("model_id", models("encoder-decoder"))
    @pytest.mark.parametrize(("config_cls", "config_kwargs"), configs("SEQ_2_SEQ_LM"))
    # Safe merging saves a plain state dict, which no model with tied embeddings can be saved as.
    @pytest.mark.parametrize("contract", [c for c in CONTRACTS if c != "safe_merge"])
    def test_contract(self, contract, model_id, config_cls, config_kwargs):
        keep(contract, self, model_id, config_cls, config_kwargs)
