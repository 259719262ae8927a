"""Stacks with a tuner of another package, which lorada does not know: what it computes decides."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from conftest import TINY, assert_close
from folders import refused
from peft import LoraConfig, PeftConfig, get_peft_model
from peft import mapping as peft_tables
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from stacks import batch, logits, moved
from torch import nn

import lorada
from lorada import LoradaConfig
from lorada.tuners.base.part_config import PeftTypeName

pytestmark = pytest.mark.fp64
NAME = PeftTypeName("OUTSIDE")
TARGETS = ["q_proj", "v_proj"]


@dataclass
class OutsideConfig(PeftConfig):
    """A learned factor on each output, which ``token`` makes depend on the token."""

    token: str = field(default="")
    target_modules: list[str] | None = field(default=None)
    refuses: ClassVar[bool] = False  # whether the tuner itself refuses to merge

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = NAME


class OutsideLayer(nn.Module, BaseTunerLayer):
    adapter_layer_names = ("outside_factor",)
    other_param_names = ("token",)

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.token, self.merged_adapters = base_layer, {}, []
        self.outside_factor, self._disable_adapters = nn.ParameterDict(), False

    def update_layer(self, name, config):
        self.token[name] = config.token
        self.outside_factor[name] = nn.Parameter(torch.zeros(self.base_layer.out_features))
        self.set_adapter(self.active_adapters)

    def merge(self, safe_merge=False, adapter_names=None):
        if OutsideConfig.refuses:
            raise ValueError("it depends on the token")
        for name in adapter_names:  # right without ``token`` alone
            self.get_base_layer().weight.data *= 1 + self.outside_factor[name][:, None]
            self.merged_adapters.append(name)

    def forward(self, x):
        y = self.base_layer(x)
        if self.disable_adapters or self.merged:
            return y
        for name in self.active_adapters:
            kind, factor = self.token.get(name), self.outside_factor[name]
            if kind == "gate":
                factor = factor * x.mean(-1, keepdim=True).sigmoid()
            if kind == "place":  # linear in the token, but another map for each place
                factor = factor * torch.arange(1, x.shape[-2] + 1)[:, None]
            # Linear in the tokens, but a token sees the others.
            seen = y.mean(-2, keepdim=True) if kind == "others" else y
            y = y + factor * seen
        return y


class OutsideModel(BaseTuner):
    prefix = "outside_"
    tuner_layer_cls = OutsideLayer
    target_module_mapping: ClassVar[dict] = {}

    def _create_and_replace(self, config, name, target, own, parent, current_key, **options):
        layer = OutsideLayer(target)
        layer._active_adapter = name
        layer.update_layer(name, config)
        self._replace_module(parent, own, layer, target)


@pytest.fixture(autouse=True)
def known_to_peft(monkeypatch):
    monkeypatch.setitem(peft_tables.PEFT_TYPE_TO_CONFIG_MAPPING, NAME, OutsideConfig)
    monkeypatch.setitem(peft_tables.PEFT_TYPE_TO_TUNER_MAPPING, NAME, OutsideModel)
    monkeypatch.setitem(peft_tables.PEFT_TYPE_TO_PREFIX_MAPPING, NAME, OutsideModel.prefix)


def parts(token, *, alone=False):
    outside = OutsideConfig(token=token, target_modules=TARGETS)
    return [outside] if alone else [LoraConfig(r=2, target_modules=TARGETS), outside]


def refused_and_left_as_it_was(message, config):
    model, inputs = moved(TINY["llama"](), config), batch("llama")
    expected = logits(model, inputs)
    for merge in (model.merge_adapter, model.merge_and_unload, model.merge_weights):
        refused(message, merge)
        assert torch.equal(logits(model, inputs), expected)


@pytest.mark.first
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "around lora"])
@pytest.mark.parametrize("token", ["gate", "place", "others"])
def test_what_depends_on_more_than_the_token_linearly_is_never_merged(token, alone):
    message = r"^OutsideLayer on model\.layers\.0\.\S+ is not linear in each token, .* adapter$"
    refused_and_left_as_it_was(message, LoradaConfig(parts=parts(token, alone=alone)))


@pytest.mark.first
@pytest.mark.parametrize("token", ["", "gate"])
def test_what_its_own_tuner_does_not_merge_is_not_merged_in_a_stack(token, monkeypatch):
    assert LoradaConfig(parts=parts("")).mergeable
    lorada.tuners.stack.trial_merge._kind_refuses.cache_clear()
    monkeypatch.setattr(OutsideConfig, "refuses", True)
    config = LoradaConfig(parts=parts(token))
    assert not config.mergeable
    refused_and_left_as_it_was("a stack with OutsideConfig cannot be merged .* adapter$", config)
    lorada.tuners.stack.trial_merge._kind_refuses.cache_clear()


@pytest.mark.first
def test_a_linear_part_of_another_package_merges_to_what_the_stack_computes():
    model, inputs = moved(TINY["llama"](), LoradaConfig(parts=parts(""))), batch("llama")
    expected = logits(model, inputs)
    model.merge_adapter()
    assert_close(logits(model, inputs), expected)
    model.unmerge_adapter()
    assert_close(logits(model.merge_and_unload(), inputs), expected)


@pytest.mark.fp64(False)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_the_rounding_of_a_narrow_dtype_is_not_taken_for_a_dependence(dtype):
    parts = [LoraConfig(r=2, target_modules=TARGETS), lorada.SoraConfig(rank=2)]
    model = get_peft_model(TINY["llama"](), LoradaConfig(parts=parts)).to(dtype).eval()
    model.merge_and_unload()
    gated = LoradaConfig(parts=[parts[0], OutsideConfig(token="gate", target_modules=TARGETS)])
    refused("is not linear in each token", moved(TINY["llama"]().to(dtype), gated).merge_weights)


def test_a_setting_that_no_weight_can_hold_is_said_by_the_config_too():
    aware = LoraConfig(r=2, target_modules=TARGETS, alora_invocation_tokens=[7])
    assert not LoradaConfig(parts=[aware], task_type="CAUSAL_LM").mergeable
    assert LoradaConfig(parts=[LoraConfig(r=2, target_modules=TARGETS)]).mergeable
