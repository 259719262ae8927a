"""What cannot be, a value, layers, a stack: one line, and the model stays as it was."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import TINY, VOCAB
from folders import refused as one_line
from peft import (
    AdaLoraConfig,
    HRAConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from stacks import FFN, QUERY, batch, bottleneck, ia3, lmam, logits, lora, moved, training_stack
from torch import nn
from transformers import DebertaV2Config

from lorada import (
    BottleneckConfig,
    LamdaConfig,
    LmamConfig,
    LoradaConfig,
    OmoeConfig,
    PrefixConfig,
    QuantaConfig,
    SoraConfig,
    build_method,
)
from lorada.methods.callbacks.ist import ISTCallback
from lorada.methods.callbacks.lamda_schedule import LamdaCallback
from lorada.methods.callbacks.longlora import ShiftedAttention
from lorada.methods.callbacks.owlore import OwLoreCallback
from lorada.methods.callbacks.sora_thresholds import SoraCallback
from lorada.tuners.base.part_config import _type_adapters
from lorada.tuners.pooling import PoolingConfig

pytestmark = pytest.mark.fp64

Q_PROJ = {"target_modules": ["q_proj"]}
KINDS = {
    "lmam": lambda **more: LmamConfig(rank=2, length=6, **more),
    "bottleneck": lambda **more: BottleneckConfig(rank=2, **more),
    "series": lambda **more: BottleneckConfig(rank=2, placement="series", **more),
    "prefix": lambda **more: PrefixConfig(length=3, **more),
    "quanta": lambda **more: QuantaConfig(**Q_PROJ, **more),
    "sora": lambda **more: SoraConfig(rank=2, **Q_PROJ, **more),
    "lamda": lambda **more: LamdaConfig(rank=2, **Q_PROJ, **more),
    "omoe": lambda **more: OmoeConfig(rank=2, **more),
}
THEIRS = {
    "lora": lambda **more: LoraConfig(r=2, **Q_PROJ, **more),
    "adalora": lambda **more: AdaLoraConfig(init_r=2, target_r=1, total_step=9, **Q_PROJ, **more),
}


# Configs, and procedures with settings of their own.
CONFIGS = (
    BottleneckConfig, LamdaConfig, LmamConfig, OmoeConfig, PoolingConfig, PrefixConfig,
    QuantaConfig, SoraConfig, ISTCallback, LamdaCallback, OwLoreCallback, ShiftedAttention,
    SoraCallback,
)  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_refuses_what_is_no_value_of_it(config):
    for name in _type_adapters(config):
        for value in (-1, "no value", object(), *[1.0] * (name == "dropout")):
            said = f"^{re.escape(f'{name}={value!r}')}:? ."
            one_line(said, lambda name=name, value=value: config(**{name: value}))


COUNT = "(input should be greater than 0|input should be a valid integer)"
NUMBER = "(input should be greater than 0|input should be a valid number)"
BAD_VALUES = [
    *((PrefixConfig, {"length": value}, COUNT) for value in (0, 1.5, True, "3", None)),
    (PrefixConfig, {"projection": False}, COUNT),
    *((PrefixConfig, {"initial_std": value}, NUMBER) for value in (0, "much", None)),
    (LmamConfig, {"align": "middle"}, "input should be 'start'"),
    *((LmamConfig, {"init": value, "ablation": "full_rank"}, "has no meaning for ablation='full_")
      for value in ("zero_left", "normal")),
    (BottleneckConfig, {"dropout": 1.0}, "input should be less than 1"),
    (BottleneckConfig, {"adapter_input": "normed", "placement": "pa_attn"},
     "is about placement 'ffn', not 'pa_attn': leave it out"),
    (LamdaConfig, {"rank_pattern": {"q_proj": 0}}, r"\['q_proj'\]input should be greater than 0"),
    *((QuantaConfig, {"dims": value}, "must be two or more whole numbers above 1")
      for value in ([32], [32, 1], "8-x", 4096)),
    (SoraConfig, {"penalty": True}, "input should be"),
    (ISTCallback, {"suppress_frac": 1.5}, "input should be less than or equal to 1"),
    (OwLoreCallback, {"weights": [1, -1]}, "input should be greater"),
    *((ShiftedAttention, {"group_size": value}, COUNT) for value in (0, 1.5, True)),
]  # fmt: skip


@pytest.mark.first
@pytest.mark.parametrize(("make", "options", "message"), BAD_VALUES, ids=str)
def test_a_bad_value_is_one_line_that_shows_it(make, options, message):
    name, value = next(iter(options.items()))
    one_line(f"^{re.escape(f'{name}={value!r}')}:? {message}", lambda: make(**options))


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


def refused(message, make, build=TINY["llama"]):
    """Placing what ``make`` gives is one line that matches, and leaves the model as it was."""
    base = build()
    before = state(base)
    one_line(message, lambda: get_peft_model(base, make()))
    assert state(base) == before


def config_of(kind, where, **setting):
    """A config with a setting of its own, or of the part of a stack, or of the stack."""
    if where == "alone":
        return KINDS[kind](**setting)
    of_part, of_stack = (setting, {}) if where == "part" else ({}, setting)
    return LoradaConfig(parts=[(KINDS | THEIRS)[kind](**of_part)], **of_stack)


every_kind = pytest.mark.parametrize("kind", [*KINDS, *THEIRS])


@pytest.mark.parametrize(
    ("kind", "where"),
    [*((kind, "alone") for kind in KINDS),
     *((kind, where) for kind in KINDS | THEIRS for where in ("part", "stack"))],
)  # fmt: skip
def test_layers_and_modules_that_the_model_lacks_are_named_with_what_it_has(kind, where):
    first = "" if where == "alone" else "part 1 of 1 of the stack: .*"
    refused(
        rf"{first}layers_to_transform=\[7\] matched no module.*this model has",
        lambda: config_of(kind, where, layers_to_transform=[7]),
    )
    refused(
        "unknown module in modules_to_save 'lm_haed'; did you mean lm_head",
        lambda: config_of(kind, where, modules_to_save=["lm_haed"]),
    )


@every_kind
def test_an_empty_list_of_layers_is_no_way_to_say_all(kind):
    refused(
        r"layers_to_transform=\[\] names no layer: leave it out",
        lambda: config_of(kind, "part", layers_to_transform=[]),
    )


@every_kind
def test_two_parts_of_a_kind_cannot_have_the_same_modules(kind):
    make = (KINDS | THEIRS)[kind]
    refused(
        r"both target model\.layers\.0\.\S+: give them different target_modules",
        lambda: of(make(), make()),
    )


@pytest.mark.first
@pytest.mark.parametrize("stacked", [False, True], ids=["alone", "in a stack"])
@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (QuantaConfig, {"dims": [4, 4]}, "dims=4-4 multiply to 16.*32 inputs and 32 outputs"),
        (QuantaConfig, {"dims": [8, 6], "target_modules": ["up_proj", "lm_head"]},
         "to 48, but lm_head has 32 inputs and 96 outputs: choose"),
        (QuantaConfig, {"target_modules": ["embed_tokens"]}, "embed_tokens, which is Embedding"),
        (LamdaConfig, {"rank": 20}, "rank=20 is more than a weight of 16 × 32 has: choose 16 or"),
        (PrefixConfig, {"target_modules": ["mlp"]}, "mlp, which is not an attention module"),
        (BottleneckConfig, {"placement": "series", "target_modules": ["mlp"]},
         "matches model.layers.0.mlp, which is not a target of placement='series'"),
        (BottleneckConfig, {"placement": "series", "target_modules": ["lm_head"]},
         "matches lm_head, which is not a target of placement='series'"),
        (BottleneckConfig, {"placement": "pa_attn", "target_modules": ["mlp"]},
         "matches model.layers.0.mlp, which is not a target of .*this model has self_attn"),
        (BottleneckConfig, {"placement": "houlsby", "target_modules": ["self_attn"]},
         "which is not a target of placement='houlsby'.*has mlp, self_attn.o_proj"),
        (BottleneckConfig, {"placement": "parallel", "target_modules": ["wi"]},
         r"target_modules=\['wi'\] matched no module; this model has mlp.down_proj"),
        (LmamConfig, {"target_modules": r".*self_attn", "layers_to_transform": [0]},
         "layers_to_transform is for a list of target_modules, not for the regex"),
        (LmamConfig, {"target_modules": "self_attn"},
         r"a text is a regex of the whole name: write \[self_attn\]\) matched no module"),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_that_does_not_fit_the_model_is_refused(config, options, message, stacked):
    def make():
        part = config(**options)
        return LoradaConfig(parts=[part]) if stacked else part

    refused(message, make)


@pytest.mark.parametrize("steps", [None, 0, -5])
def test_adalora_needs_the_number_of_steps(steps):
    parts = [{"peft_type": "ADALORA", "total_step": steps, **Q_PROJ}]
    refused("total_step.*supply a value > 0", lambda: LoradaConfig(parts=parts))
    with pytest.raises(ValueError, match=r"total_step.*supply a value > 0"):
        build_method("adalora", DebertaV2Config(), total_step=steps)


@pytest.mark.first
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least one part"),
        ([PrefixTuningConfig(num_virtual_tokens=2)], "PrefixTuningConfig cannot be a part"),
        ([LoradaConfig(parts=[KINDS["lmam"]()])], "LoradaConfig cannot be a part"),
        (["lora"], "not 'lora'"),
        ([{"peft_type": "NEWER"}], "peft_type='NEWER'"),
        ([{"peft_type": ["LORA"]}], r"peft_type=\['LORA'\] of a part is unknown"),
        ([{"peft_type": "LORA", "alhpa": 3}], "unknown setting of LORA 'alhpa'; did you mean"),
        ([{"peft_type": "LMAM", "lenght": 3}], "setting of LMAM 'lenght'; did you mean length"),
        ([{"peft_type": "LORA", 5: 3}], "unknown setting of LORA '5'"),
        ([LoraConfig(trainable_token_indices=[1])],
         "trainable_token_indices of LoraConfig: add a TrainableTokensConfig"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_part_is_refused(parts, message):
    one_line(message, lambda: LoradaConfig(parts=parts))


class Odd(nn.Module):
    """A model without attention and without an FFN."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(input_ids.float()))


def of(*parts, **options) -> LoradaConfig:
    return LoradaConfig(parts=list(parts), **options)


def training_whole(module: str, outside: str) -> IA3Config:
    """A part that trains a module as a whole, and is itself on another."""
    return IA3Config(target_modules=[outside], feedforward_modules=[], modules_to_save=[module])


# A stack that does not fit -> what is said of it, and the model where it is not the LLaMA.
MISFITS = {
    "lora after a map": (
        lambda: of(lmam(), LoraConfig(r=2, target_modules=["nope"])),
        r"LoraConfig, part 2 of 2 of the stack: target_modules=\['nope'\] matched .*"
        "this model has self_attn.q_proj, .*mlp.down_proj, lm_head",
    ),
    "map that matches other modules too": (
        lambda: of(lora("llama"), lmam(target_modules=r".*\.(self_attn|mlp)")),
        "LmamConfig, part 2 of 2 .*mlp, which is not a self-attention .*this model has self_attn",
    ),
    "map on cross-attention": (
        lambda: of(lmam(target_modules=["encoder_attn"])),
        "layers.0.encoder_attn, which is not a self-attention .*; this model has self_attn",
        ARCHITECTURES["bart"],
    ),
    "map without attention": (
        lambda: of(LoraConfig(r=2, target_modules=["first"]), lmam()),
        "LmamConfig, part 2 of 2 .*no self-attention module of Odd dispatches",
        Odd,
    ),
    "lora without a default": (
        lambda: of(LoraConfig(r=2)),
        "LoraConfig, part 1 of 1 .*specify `target_modules`.*this model has first, second",
        Odd,
    ),
    "layers beside a regex": (
        lambda: of(LoraConfig(target_modules=r".*q_proj"), layers_to_transform=[0]),
        "layers_to_transform is for a list of target_modules, not for the regex",
    ),
    "layers for a part that has none": (
        lambda: of(ia3("llama", QUERY), layers_to_transform=[0]),
        "this one cannot have it: name the layers in its target_modules",
    ),
    "two parts that share weights": (
        lambda: of(*(VeraConfig(r=4, target_modules=[name]) for name in ("q_proj", "v_proj"))),
        "VeraConfig, part 2 of 2 of the stack: an adapter has one such part at most",
    ),
    "map in a module that trains whole": (
        lambda: of(training_whole("self_attn", "up_proj"), lmam()),
        r"modules_to_save trains model\.layers\.0\.self_attn whole, where .* has lmam: leave",
    ),
    "lora in a module that trains whole": (
        lambda: of(lora("llama", FFN), training_whole("mlp", "k_proj")),
        r"modules_to_save trains model\.layers\.0\.mlp whole, where .* has down_proj: leave",
    ),
    **{
        f"{second.__name__} after {first.__name__} on {name}": (
            lambda one=first, two=second: of(one(), two(layers_to_transform=[7])),
            r"part 2 of 2 .*layers_to_transform",
            ARCHITECTURES[name],
        )
        for name in ("bart", "deberta_v2", "opt", "t5")
        for first, second in ((lmam, bottleneck), (bottleneck, lmam))
    },
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_stack_with_a_part_that_does_not_fit_leaves_no_half_of_it(case):
    make, said, *build = MISFITS[case]
    refused(said, make, *build)


@pytest.mark.parametrize("name", ["omoe", "lamda", "lora"])
def test_the_layers_of_a_method_are_those_that_are_asked_for(name):
    model = TINY["bert"]()
    adapted = get_peft_model(
        model, build_method(name, model.config, layers_to_transform=[1]).config
    )
    layers = [key for key, one in adapted.named_modules() if isinstance(one, BaseTunerLayer)]
    assert layers
    assert all(".layer.1." in key for key in layers)


# Beside other adapters, and of a saved one.

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
    return adding("new", of(*parts, **options))


def loading(base=TINY["llama"], low=False) -> Callable[[PeftModel, Path], None]:
    """Loading an adapter that was saved for some base."""

    def act(model: PeftModel, folder: Path) -> None:
        moved(base(), LoradaConfig(parts=[lora("llama"), lmam()], **HEAD)).save_pretrained(folder)
        model.load_adapter(folder, "new", low_cpu_mem_usage=low)

    return act


def wide():
    return TINY["llama"](hidden_size=64, head_dim=8)


def resized():
    model = TINY["llama"]()
    model.resize_token_embeddings(VOCAB + 8)
    return model


OTHER = lora("llama", FFN)
EMBEDDING = LoraConfig(r=2, target_modules=["embed_tokens"])
# Every way in which an adapter beside others is refused -> what is tried, and what is said.
REFUSALS = {
    "no such target": (stack(LoraConfig(r=2, target_modules=["no"]), **HEAD), "matched no module"),
    "a second part": (stack(OTHER, lmam(heads=3), **HEAD), "heads=3 does not divide"),
    "two of a kind": (stack(OTHER, lmam(), lmam()), "both target"),
    "two maps of other forms": (
        stack(OTHER, lmam(ablation="full_rank"), lmam(length=9)),
        "two parts of type LMAM both target",
    ),
    "another order": (
        stack(ia3("llama", QUERY), lora("llama", QUERY)),
        "'new' applies its parts to .*q_proj in another order",
    ),
    "blind": (stack(OTHER, HRAConfig(r=2, target_modules=["q_proj"])), "ignore the other parts"),
    "shared state": (stack(OTHER, VeraConfig(**VERA)), "has had an adapter with such a part"),
    "a module that is no module": (stack(OTHER, modules_to_save=["haed"]), "modules_to_save"),
    "a part in a whole module": (
        stack(lmam(), training_whole("self_attn", "up_proj")), "leave the module out"
    ),
    "a list of modules": (stack(EMBEDDING, modules_to_save=["layers"]), "cannot be applied to"),
    "no part": (adding("new", PrefixTuningConfig()), "cannot be a part"),
    "plain": (adding("new", lmam(heads=3)), "heads=3 does not divide"),
    "known name": (adding("there", OTHER), "already exists"),
    "another size": (loading(base=wide), "for another model size"),
    "another size, low memory": (loading(base=wide, low=True), "for another model size"),
    "another depth": (
        loading(base=lambda: TINY["llama"](num_hidden_layers=3)), "for another architecture",
    ),
}  # fmt: skip


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


BASES = {
    "hidden size": (training_stack, wide),
    "heads": (lmam, lambda: TINY["llama"](num_attention_heads=8, head_dim=4)),
    "layers": (training_stack, lambda: TINY["llama"](num_hidden_layers=1)),
    "resized head": (lambda: training_stack(modules_to_save=["lm_head"]), resized),
    "resized embedding": (lambda: training_stack(modules_to_save=["embed_tokens"]), resized),
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
    one_line(said, lambda: PeftModel.from_pretrained(base, tmp_path, **low))
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
