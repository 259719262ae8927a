"""An adapter that is refused leaves the running one as it was, with its copies of modules."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY
from peft import (
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    VeraConfig,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from stacks import FFN, QUERY, batch, bottleneck, ia3, lmam, logits, lora, moved

from lorada import LoradaConfig

pytestmark = pytest.mark.fp64

HEAD = {"modules_to_save": ["lm_head"]}
VERA = {"r": 2, "target_modules": ["o_proj"]}


def running() -> PeftModel:
    parts = [lmam(), lora("llama", QUERY), ia3("llama", QUERY), VeraConfig(**VERA), bottleneck()]
    model = moved(TINY["llama"](), LoradaConfig(parts=parts, **HEAD), "there")
    model.add_adapter("second", LoradaConfig(parts=[lora("llama")], **HEAD))
    return model.eval()


def adding(name, config) -> Callable[[PeftModel, Path], None]:
    return lambda model, folder: model.add_adapter(name, copy.deepcopy(config))


def stack(*parts, **options) -> Callable[[PeftModel, Path], None]:
    return adding("new", LoradaConfig(parts=list(parts), **options))


def saved(folder: Path, base=None, **options) -> Path:
    config = LoradaConfig(parts=[lora("llama"), lmam()], **{**HEAD, **options})
    moved(base or TINY["llama"](), config).save_pretrained(folder)
    return folder


def loading(change=lambda folder: None, low=False, base=None, **options) -> Callable:
    """Loading a saved adapter of which something was changed."""

    def act(model: PeftModel, folder: Path) -> None:
        saved(folder, base and base(), **options)
        change(folder)
        model.load_adapter(folder, "new", low_cpu_mem_usage=low)

    return act


def with_config(**changes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def wide():
    return TINY["llama"](hidden_size=64, head_dim=8)


def longer():
    model = TINY["llama"]()
    model.resize_token_embeddings(104)
    return model


OTHER = lora("llama", FFN)
EMBEDDING = LoraConfig(r=2, target_modules=["embed_tokens"])
WHOLE = IA3Config(target_modules=["up_proj"], feedforward_modules=[], modules_to_save=["self_attn"])
# Every way in which an adapter beside others is refused -> what is tried, and what is said.
REFUSALS = {
    "no such target": (stack(LoraConfig(r=2, target_modules=["no"]), **HEAD), "matched no module"),
    "no such layer": (stack(lmam(layers_to_transform=[7]), **HEAD), "matched no module"),
    "a second part": (stack(OTHER, lmam(heads=3), **HEAD), "heads=3 does not divide"),
    "a third part": (stack(OTHER, bottleneck(), lmam(heads=3)), "heads=3 does not divide"),
    "no attention": (stack(OTHER, lmam(target_modules=["mlp"])), "not a self-attention"),
    "no FFN": (stack(OTHER, bottleneck(target_modules=["self_attn"])), "not an FFN"),
    "two of a kind": (stack(OTHER, lmam(), lmam()), "both target"),
    "another order": (stack(ia3("llama", QUERY), lora("llama", QUERY)), "in another order"),
    "blind": (stack(OTHER, HRAConfig(r=2, target_modules=["q_proj"])), "ignore the other parts"),
    "a copied layer": (stack(LNTuningConfig(target_modules=["q_proj"])), "ignore the other parts"),
    "shared state": (stack(OTHER, VeraConfig(**VERA)), "has had an adapter with such a part"),
    "a module that is no module": (stack(OTHER, modules_to_save=["haed"]), "modules_to_save"),
    "a part in a whole module": (stack(lmam(), WHOLE), "leave the module out"),
    "a list of modules": (stack(EMBEDDING, modules_to_save=["layers"]), "cannot be applied to"),
    "no part": (adding("new", PrefixTuningConfig()), "cannot be a part"),
    "plain": (adding("new", lmam(heads=3)), "heads=3 does not divide"),
    "known name": (adding("there", OTHER), "already exists"),
    "another size": (loading(base=wide), "for another model size"),
    "another size, low memory": (loading(base=wide, low=True), "for another model size"),
    "another head": (loading(base=longer), "for another model size"),
    "another depth": (
        loading(base=lambda: TINY["llama"](num_hidden_layers=3)), "for another architecture",
    ),
    "an unknown part": (loading(with_config(parts=[{"peft_type": "NEW"}])), "unknown to this peft"),
}  # fmt: skip


def state(model: PeftModel) -> dict:
    """Everything that placing an adapter may change, but for the values of the weights."""
    modules = list(model.named_modules(remove_duplicate=False))
    held = [m for _, m in modules if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    return {
        "adapters": (list(model.peft_config), list(model.base_model.active_adapters)),
        "modules": [(name, id(module), module.training) for name, module in modules],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for _, m in modules],
        "parameters": [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
        "active": [(list(m.active_adapters), m.disable_adapters) for m in held],
        "known": [sorted(m._get_available_adapters()) for m in held],
        "copies": [sorted(m._adapters) for m in held if isinstance(m, AuxiliaryTrainingWrapper)],
    }


@pytest.mark.first
@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_adapter_leaves_the_running_one_as_it_was(case, tmp_path):
    act, said = REFUSALS[case]
    model, inputs = running(), batch("llama")
    before, expected = state(model), logits(model, inputs)
    with pytest.raises(Exception, match=said):
        act(model, tmp_path)
    assert state(model) == before
    assert torch.equal(logits(model, inputs), expected)
    model.add_adapter("new", LoradaConfig(parts=[lora("llama")], **HEAD))  # the name is free
