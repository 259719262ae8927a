"""An adapter that is refused leaves the model as it was: a base, or a model with other adapters."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import TINY, VOCAB
from folders import refused
from peft import (
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from stacks import (
    FFN,
    QUERY,
    batch,
    bottleneck,
    ia3,
    lmam,
    logits,
    lora,
    moved,
    training_stack,
)
from torch import nn

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


def resized():
    model = TINY["llama"]()
    model.resize_token_embeddings(VOCAB + 8)
    return model


OTHER = lora("llama", FFN)
EMBEDDING = LoraConfig(r=2, target_modules=["embed_tokens"])
WHOLE = IA3Config(target_modules=["up_proj"], feedforward_modules=[], modules_to_save=["self_attn"])
# Every way in which an adapter beside others is refused -> what is tried, and what is said.
REFUSALS = {
    "no such target": (stack(LoraConfig(r=2, target_modules=["no"]), **HEAD), "matched no module"),
    "no such layer": (stack(lmam(layers_to_transform=[7]), **HEAD), "matched no module"),
    "a second part": (stack(OTHER, lmam(heads=3), **HEAD), "heads=3 does not divide"),
    "a third part": (stack(OTHER, bottleneck(), lmam(heads=3)), "part 3 of 3.*heads=3 does not"),
    "no attention": (stack(OTHER, lmam(target_modules=["mlp"])), "not a self-attention"),
    "no FFN": (stack(OTHER, bottleneck(target_modules=["self_attn"])), "is not a target of"),
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
    "another head": (loading(base=resized), "for another model size"),
    "another depth": (
        loading(base=lambda: TINY["llama"](num_hidden_layers=3)), "for another architecture",
    ),
    "an unknown part": (loading(with_config(parts=[{"peft_type": "NEW"}])), "unknown to this peft"),
}  # fmt: skip


def state(model: nn.Module) -> dict:
    """Everything that placing an adapter may change, but for the values of the weights."""
    modules = list(model.named_modules(remove_duplicate=False))
    held = [m for _, m in modules if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    active = list(model.base_model.active_adapters) if isinstance(model, PeftModel) else []
    return {
        "adapters": (list(getattr(model, "peft_config", ())), active),
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


class Odd(nn.Module):
    """A model without attention and without an FFN."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(input_ids.float()))


MISFITS = {
    "lora after a map": (
        TINY["llama"],
        lambda: [lmam(), LoraConfig(r=2, target_modules=["nope"])],
        r"LoraConfig, part 2 of 2 of the stack: target_modules=\['nope'\] matched .*"
        "this model has self_attn.q_proj, .*mlp.down_proj, lm_head",
    ),
    "map that matches other modules too": (
        TINY["llama"],
        lambda: [lora("llama"), lmam(target_modules=r".*\.(self_attn|mlp)")],
        "LmamConfig, part 2 of 2 .*mlp, which is not a self-attention .*this model has self_attn",
    ),
    "map without attention": (
        Odd,
        lambda: [LoraConfig(r=2, target_modules=["first"]), lmam()],
        "LmamConfig, part 2 of 2 .*no self-attention module of Odd dispatches",
    ),
    "lora without a default": (
        Odd,
        lambda: [LoraConfig(r=2)],
        "LoraConfig, part 1 of 1 .*specify `target_modules`.*this model has first, second",
    ),
    **{
        f"{second.__name__} after {first.__name__} on {name}": (
            ARCHITECTURES[name],
            lambda one=first, two=second: [one(), two(layers_to_transform=[7])],
            r"part 2 of 2 .*layers_to_transform",
        )
        for name in ("bart", "bloom", "deberta_v2", "opt", "t5")
        for first, second in ((lmam, bottleneck), (bottleneck, lmam))
    },
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_stack_with_a_part_that_does_not_fit_leaves_no_half_of_it(case):
    build, parts, message = MISFITS[case]
    base = build()
    before = state(base)
    refused(message, lambda: get_peft_model(base, LoradaConfig(parts=parts())))
    assert state(base) == before


def whole(name):
    """A stack that trains and saves a module whole beside its parts."""
    return training_stack(modules_to_save=[name])


BASES = {
    "hidden size": (training_stack, wide),
    "heads": (lmam, lambda: TINY["llama"](num_attention_heads=8, head_dim=4)),
    "layers": (training_stack, lambda: TINY["llama"](num_hidden_layers=1)),
    "head of a resized vocabulary": (lambda: whole("lm_head"), resized),
    "embedding of a resized vocabulary": (lambda: whole("embed_tokens"), resized),
}


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("case", BASES)
def test_an_adapter_of_another_base_leaves_the_base_as_it_was(case, low_memory, tmp_path):
    config, other = BASES[case]
    moved(TINY["llama"](), config()).save_pretrained(tmp_path)
    base, inputs = other(), batch("llama")
    names, before = [name for name, _ in base.named_modules()], logits(base, inputs)
    low = {"low_cpu_mem_usage": low_memory}
    said = "the adapter was saved for another"
    refused(said, lambda: PeftModel.from_pretrained(base, tmp_path, **low))
    assert [name for name, _ in base.named_modules()] == names
    assert torch.equal(logits(base, inputs), before)


def test_an_adapter_in_training_survives_weights_that_do_not_fit(tmp_path):
    moved(wide(), training_stack()).save_pretrained(tmp_path)
    model, inputs = moved(TINY["llama"](), training_stack()), batch("llama")
    expected = logits(model, inputs)
    with pytest.raises(ValueError, match="another model size or head count"):
        model.load_adapter(tmp_path, "default", is_trainable=True)
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model, inputs), expected)
