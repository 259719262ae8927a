"""A part that does not fit is an error in one line that names it, and leaves the model whole."""

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import TINY
from folders import refused
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from stacks import QUERY, bottleneck, ia3, lmam, lora
from torch import nn

from lorada import LoradaConfig

pytestmark = pytest.mark.fp64


class Odd(nn.Module):
    """A model without attention and without an FFN."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(input_ids.float()))


MISFITS = {
    "lora after a map": (
        "llama",
        lambda: [lmam(), LoraConfig(r=2, target_modules=["nope"])],
        r"LoraConfig, part 2 of 2 of the stack: target_modules=\['nope'\] matched .*"
        "this model has self_attn.q_proj, .*mlp.down_proj, lm_head",
    ),
    "map after lora and ia3": (
        "bert",
        lambda: [lora("bert", QUERY), ia3("bert", QUERY), lmam(heads=3)],
        "LmamConfig, part 3 of 3 .*heads=3 does not divide the 4 attention heads",
    ),
    "bottleneck that matches other modules too": (
        "llama",
        lambda: [lmam(), bottleneck(target_modules=r".*\.(mlp|o_proj)")],
        "BottleneckConfig, part 2 of 2 .*o_proj, which is not an FFN .*this model has mlp",
    ),
    "map that matches other modules too": (
        "llama",
        lambda: [lora("llama"), lmam(target_modules=r".*\.(self_attn|mlp)")],
        "LmamConfig, part 2 of 2 .*mlp, which is not a self-attention .*this model has self_attn",
    ),
    "map without attention": (
        "odd",
        lambda: [LoraConfig(r=2, target_modules=["first"]), lmam()],
        "LmamConfig, part 2 of 2 .*no self-attention module of Odd dispatches",
    ),
    "lora without a default": (
        "odd",
        lambda: [LoraConfig(r=2)],
        "LoraConfig, part 1 of 1 .*specify `target_modules`.*this model has first, second",
    ),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Odd() if name == "odd" else TINY[name]()


def state(model: nn.Module) -> dict:
    """Everything that placing a part may change, but for the values of the weights."""
    return {
        "modules": [(n, id(m)) for n, m in model.named_modules(remove_duplicate=False)],
        "hooks": [(n, len(m._forward_hooks), len(m._forward_pre_hooks))
                  for n, m in model.named_modules()],
        "parameters": [(n, id(p), p.requires_grad) for n, p in model.named_parameters()],
        "active": [list(m.active_adapters) for m in model.modules()
                   if isinstance(m, BaseTunerLayer)],
        "config": getattr(model, "peft_config", None),
    }  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_stack_with_a_part_that_does_not_fit_leaves_no_half_of_it(case):
    name, parts, message = MISFITS[case]
    base = build(name)
    before = state(base)
    refused(message, lambda: get_peft_model(base, LoradaConfig(parts=parts())))
    assert state(base) == before
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules())


@pytest.mark.parametrize("name", ["bart", "bloom", "deberta_v2", "opt", "t5"])
def test_half_a_stack_leaves_no_hooks_on_other_architectures(name):
    base = ARCHITECTURES[name]()
    before = state(base)
    for first, second in ((lmam, bottleneck), (bottleneck, lmam)):
        stack = LoradaConfig(parts=[first(), second(layers_to_transform=[7])])
        with pytest.raises(ValueError, match=r"part 2 of 2 .*layers_to_transform"):
            get_peft_model(base, stack)
        assert state(base) == before
