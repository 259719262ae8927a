"""Values, layers and stacks that cannot be: one line, and the model stays as it was."""

import re

import pytest
from architectures import ARCHITECTURES
from conftest import TINY
from folders import refused as one_line
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    TrainableTokensConfig,
    get_peft_model,
)
from peft.tuners.tuners_utils import BaseTunerLayer
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
from lorada.tuners.pooling import PoolingConfig

QUERY = {"target_modules": ["q_proj"]}
KINDS = {
    "lmam": lambda **more: LmamConfig(rank=2, length=6, **more),
    "bottleneck": lambda **more: BottleneckConfig(rank=2, **more),
    "series": lambda **more: BottleneckConfig(rank=2, placement="series", **more),
    "prefix": lambda **more: PrefixConfig(length=3, **more),
    "quanta": lambda **more: QuantaConfig(**QUERY, **more),
    "sora": lambda **more: SoraConfig(rank=2, **QUERY, **more),
    "lamda": lambda **more: LamdaConfig(rank=2, **QUERY, **more),
    "omoe": lambda **more: OmoeConfig(rank=2, **more),
}
THEIRS = {
    "lora": lambda **more: LoraConfig(r=2, **QUERY, **more),
    "adalora": lambda **more: AdaLoraConfig(init_r=2, target_r=1, total_step=9, **QUERY, **more),
}


alone_and_stacked = pytest.mark.parametrize("stacked", [False, True], ids=["alone", "in a stack"])
COUNT = "(input should be greater than 0|input should be a valid integer)"
NUMBER = "(input should be greater than 0|input should be a valid number)"
BAD_VALUES = [
    *((PrefixConfig, {"length": value}, COUNT) for value in (0, -1, 1.5, True, "3", None)),
    (PrefixConfig, {"projection": False}, COUNT),
    *((PrefixConfig, {"initial_std": value}, NUMBER) for value in (0, -0.1, "much", None)),
    (LmamConfig, {"rank": 0}, COUNT),
    (LmamConfig, {"length": -3}, COUNT),
    (LmamConfig, {"heads": 0}, COUNT),
    (LmamConfig, {"inverse_scale": 0}, NUMBER),
    (LmamConfig, {"align": "middle"}, "input should be 'start'"),
    (LmamConfig, {"ablation": "N"}, "input should be 'no_negative'"),
    (LmamConfig, {"init": "ones"}, "input should be 'zero'"),
    *((LmamConfig, {"init": value, "ablation": "full_rank"}, "has no meaning for ablation='full_")
      for value in ("zero_left", "normal")),
    (BottleneckConfig, {"rank": 0}, COUNT),
    (BottleneckConfig, {"scale": -1.0}, NUMBER),
    (BottleneckConfig, {"dropout": 1.0}, "input should be less than 1"),
    (BottleneckConfig, {"activation": "elu"}, "input should be 'relu'"),
    (BottleneckConfig, {"init": "zero"}, "input should be 'lora'"),
    (BottleneckConfig, {"placement": "attn"}, "input should be 'ffn'"),
    (BottleneckConfig, {"adapter_input": "normed", "placement": "pa_attn"},
     "is about placement 'ffn', not 'pa_attn': leave it out"),
    (LamdaConfig, {"rank": 0}, COUNT),
    (LamdaConfig, {"scale": 0.0}, NUMBER),
    (LamdaConfig, {"init": "svd"}, "input should be 'spectral'"),
    (LamdaConfig, {"ranks": "flat"}, "input should be 'uniform'"),
    (LamdaCallback, {"eta": 0.0}, "input should be greater"),
    (OmoeConfig, {"experts": 0}, COUNT),
    (OmoeConfig, {"rank": 1.5}, COUNT),
    (OmoeConfig, {"alpha": -1}, NUMBER),
    (OmoeConfig, {"dropout": 1.0}, "input should be less than 1"),
    (OmoeConfig, {"routing": "hard"}, "input should be 'soft'"),
    (PoolingConfig, {"pooling": "max"}, "input should be 'mean'"),
    (QuantaConfig, {"dropout": 1.0}, "input should be less than 1"),
    *((QuantaConfig, {"dims": value}, "must be two or more whole numbers above 1")
      for value in ([32], [32, 1], "8-x", 4096)),
    (SoraConfig, {"rank": 0}, COUNT),
    (SoraConfig, {"alpha": -1.0}, NUMBER),
    (SoraConfig, {"dropout": 1.0}, "input should be less than 1"),
    *((SoraConfig, {"penalty": value}, "input should be") for value in (-1.0, True)),
    (ISTCallback, {"suppress_frac": 1.5}, "input should be less than or equal to 1"),
    (ISTCallback, {"every": 0}, COUNT),
    (OwLoreCallback, {"layers": 0}, COUNT),
    (OwLoreCallback, {"threshold": -1}, NUMBER),
    (OwLoreCallback, {"weights": [1, -1]}, "input should be greater"),
    *((ShiftedAttention, {"group_size": value}, COUNT) for value in (0, 1.5, True)),
    (SoraCallback, {"xi": -0.1}, "input should be greater"),
    (SoraCallback, {"threshold": "hard"}, "input should be 'soft'"),
]  # fmt: skip


@pytest.mark.first
@pytest.mark.parametrize(("make", "options", "message"), BAD_VALUES, ids=str)
def test_a_bad_value_is_one_line_that_shows_it(make, options, message):
    name, value = next(iter(options.items()))
    one_line(f"^{re.escape(f'{name}={value!r}')}:? {message}", lambda: make(**options))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoradaConfig(parts=[]), "at least one part"),
        (lambda: OmoeConfig(experts=1, routing="top2"), "routing='top2' needs two experts or more"),
        (
            lambda: LamdaConfig(rank_pattern={"q_proj": 0}),
            r"\['q_proj'\]input should be greater than 0",
        ),
    ],
)
def test_values_that_do_not_go_together_are_one_line(make, message):
    one_line(message, make)


def refused(message, make):
    """Placing what ``make`` gives is one line that matches, and leaves the model as it was."""
    base = TINY["llama"]()
    before = list(base.state_dict())
    one_line(message, lambda: get_peft_model(base, make()))
    assert list(base.state_dict()) == before
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules())


def stack_of(kind, where, **setting):
    """A stack of one part, with a setting in the config of the part or in that of the stack."""
    of_part, of_stack = (setting, {}) if where == "part" else ({}, setting)
    return LoradaConfig(parts=[(KINDS | THEIRS)[kind](**of_part)], **of_stack)


@pytest.mark.parametrize("kind", [*KINDS, *THEIRS])
@pytest.mark.parametrize("where", ["part", "stack"])
def test_layers_that_the_model_lacks_are_named_and_in_a_stack_what_it_has(kind, where):
    refused(
        r"part 1 of 1 of the stack: .*layers_to_transform=\[7\] matched no module.*this model has",
        lambda: stack_of(kind, where, layers_to_transform=[7]),
    )
    if kind in KINDS:
        refused(r"layers_to_transform.*\[7\]", lambda: KINDS[kind](layers_to_transform=[7]))


@pytest.mark.parametrize("kind", [*KINDS, *THEIRS])
def test_an_empty_list_of_layers_is_no_way_to_say_all(kind):
    said, none = r"layers_to_transform=\[\] names no layer: leave it out", []
    if kind in KINDS:
        refused(said, lambda: KINDS[kind](layers_to_transform=none))
        return
    parts = [KINDS["lmam"](), THEIRS[kind](layers_to_transform=none)]
    refused(f"part 2 of 2 of the stack: {said}", lambda: LoradaConfig(parts=parts))


@pytest.mark.first
@alone_and_stacked
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
    ],
    ids=str,
)  # fmt: skip
def test_a_value_that_does_not_fit_the_model_is_refused(config, options, message, stacked):
    part = config(**options)
    refused(message, lambda: LoradaConfig(parts=[part]) if stacked else part)


@pytest.mark.parametrize("kind", [*KINDS, *THEIRS])
def test_two_parts_of_a_kind_cannot_have_the_same_modules(kind):
    make = (KINDS | THEIRS)[kind]
    refused(
        r"both target model\.layers\.0\.\S+: give them different target_modules",
        lambda: LoradaConfig(parts=[make(), make()]),
    )


@pytest.mark.parametrize("steps", [None, 0, -5])
def test_adalora_needs_the_number_of_steps(steps):
    parts = [{"peft_type": "ADALORA", "total_step": steps, **QUERY}]
    refused("total_step.*supply a value > 0", lambda: LoradaConfig(parts=parts))
    with pytest.raises(ValueError, match=r"total_step.*supply a value > 0"):
        build_method("adalora", DebertaV2Config(), total_step=steps)


@pytest.mark.parametrize("kind", [*KINDS, *THEIRS])
@pytest.mark.parametrize("where", ["part", "stack"])
def test_a_module_to_save_that_the_model_lacks_is_named(kind, where):
    modules = {"modules_to_save": ["lm_haed"]}
    said = "unknown module in modules_to_save 'lm_haed'; did you mean lm_head"
    refused(said, lambda: stack_of(kind, where, **modules))
    if kind in KINDS:
        refused("in modules_to_save 'lm_haed'", lambda: KINDS[kind](**modules))


@pytest.mark.first
@pytest.mark.parametrize(
    ("part", "message"),
    [
        (PrefixTuningConfig(num_virtual_tokens=2), "PrefixTuningConfig cannot be a part"),
        (LoradaConfig(parts=[KINDS["lmam"]()]), "LoradaConfig cannot be a part"),
        ("lora", "not 'lora'"),
        ({"peft_type": "NEWER"}, "peft_type='NEWER'"),
        ({"peft_type": ["LORA"]}, r"peft_type=\['LORA'\] of a part is unknown"),
        ({"peft_type": "LORA", "alhpa": 3}, "unknown setting of LORA 'alhpa'; did you mean"),
        ({"peft_type": "LMAM", "lenght": 3}, "setting of LMAM 'lenght'; did you mean length"),
        ({"peft_type": "LORA", 5: 3}, "unknown setting of LORA '5'"),
    ],
)
def test_what_cannot_be_a_part_is_refused(part, message):
    one_line(message, lambda: LoradaConfig(parts=[part]))


def test_tokens_that_train_are_a_part_of_their_own():
    part = THEIRS["lora"](trainable_token_indices=[1])
    refused(
        "trainable_token_indices of LoraConfig: add a TrainableTokensConfig",
        lambda: LoradaConfig(parts=[part]),
    )
    tokens = TrainableTokensConfig(token_indices=[1], target_modules=["embed_tokens"])
    get_peft_model(TINY["llama"](), LoradaConfig(parts=[THEIRS["lora"](), tokens, KINDS["lmam"]()]))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lambda: LmamConfig(target_modules=r".*self_attn", layers_to_transform=[0]),
         "layers_to_transform is for a list of target_modules, not for the regex"),
        (lambda: LoradaConfig(parts=[LoraConfig(target_modules=r".*q_proj")],
                              layers_to_transform=[0]),
         "layers_to_transform is for a list of target_modules, not for the regex"),
        (lambda: LoradaConfig(parts=[IA3Config(**QUERY, feedforward_modules=[])],
                              layers_to_transform=[0]),
         "this one cannot have it: name the layers in its target_modules"),
        (lambda: LmamConfig(target_modules="self_attn"),
         r"a text is a regex of the whole name: write \[self_attn\]\) matched no module"),
    ],
)  # fmt: skip
def test_layers_and_names_that_would_be_read_otherwise_are_refused(config, said):
    one_line(said, lambda: get_peft_model(TINY["llama"](), config()))


def test_cross_attention_has_no_map():
    config = LmamConfig(target_modules=["encoder_attn"])
    one_line("layers.0.encoder_attn, which is not a self-attention .*; this model has self_attn",
             lambda: get_peft_model(ARCHITECTURES["bart"](), config))  # fmt: skip


@pytest.mark.parametrize("name", ["omoe", "lamda", "lora"])
def test_the_layers_of_a_method_are_those_that_are_asked_for(name):
    model = TINY["bert"]()
    adapted = get_peft_model(
        model, build_method(name, model.config, layers_to_transform=[1]).config
    )
    layers = [key for key, one in adapted.named_modules() if isinstance(one, BaseTunerLayer)]
    assert layers
    assert all(".layer.1." in key for key in layers)
