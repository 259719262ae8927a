"""Methods by the names of PEFT's tuners, each of which works or says why not, and their sums."""

import re

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import TINY
from folders import refused
from method_cases import counted
from peft import PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from stacks import starts_as_base
from transformers import BartConfig

from lorada import METHODS, build_method
from lorada.methods.lookup import describe, method_named, peft_names, peft_types
from lorada.methods.method import SHIFTED_ATTENTION, peft_configs
from lorada.methods.provenance import SOURCES

OUTSIDE = "PEFT does not place it in the model's layers"
# Every name of PEFT that is no method, with the reason.
REFUSED = {
    **dict.fromkeys(
        (
            "adaption_prompt", "cartridge", "cpt", "multitask_prompt_tuning", "p_tuning",
            "prefix_tuning", "prompt_tuning",
        ),
        OUTSIDE,
    ),
    "poly": "it needs the number of each row's task in every call of the model",
    "shadow": "it trains a second model beside the base",
    "trainable_tokens": "it trains the tokens that its config names, so it has no defaults",
    "xlora": "it mixes adapters that were trained before",
}  # fmt: skip
# Read from PEFT here too: a tuner that a newer PEFT brings must work or be listed above.
NAMES = [kind.value.lower() for kind in PeftType if kind in PEFT_TYPE_TO_CONFIG_MAPPING]
TUNERS = [name for name in NAMES if name not in REFUSED]
every_tuner = pytest.mark.parametrize("name", TUNERS)

LLAMA = TINY["llama"]().config
IDS = torch.arange(3, 23).reshape(2, 10)
BATCH = {"input_ids": IDS, "labels": IDS}


def placed(name, model="llama", **overrides):
    """A tiny model with a method on it."""
    base = (TINY | ARCHITECTURES)[model]()
    config = build_method(name, base.config, **overrides).config
    config.task_type = None
    return get_peft_model(base, config)


def losses(adapted) -> tuple[float, float]:
    """Before one step of training and after it."""
    before = adapted(**BATCH).loss
    before.backward()
    torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=1e-2).step()
    return before.item(), adapted(**BATCH).loss.item()


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


SUMS = ("ia3+lora", "vera+lora", "oft+lmam", "vblora+unilora+lmam")


@pytest.mark.parametrize("model", ["llama", "roberta"])
@pytest.mark.parametrize("name", [*TUNERS, *SUMS])
def test_a_tuner_of_peft_or_a_sum_starts_trains_loads_and_merges_as_it_says(name, model, tmp_path):
    adapted, plain = placed(name, model), logits(TINY[model]())
    config = adapted.peft_config["default"]
    assert ((logits(adapted) - plain).abs().max() < 1e-4) == starts_as_base(config)
    before, after = losses(adapted)
    assert before != after
    adapted.save_pretrained(tmp_path)
    torch.manual_seed(1)  # so that what is drawn again differs, unless it has its own seed
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["adapter_model.safetensors"]
    loaded, expected = PeftModel.from_pretrained(TINY[model](), tmp_path), logits(adapted)
    assert torch.equal(logits(loaded), expected)
    assert not torch.equal(expected, plain)
    without_bias = (name, model) == ("beft", "llama")  # there is none to merge its own into
    if not config.mergeable or without_bias:
        refused("cannot be merged", adapted.merge_and_unload)
        return
    torch.testing.assert_close(logits(adapted.merge_and_unload()), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_method_says_why(name):
    text = f"PEFT's {name} cannot be used as a method: {REFUSED[name]}"
    refused(re.escape(text), lambda: method_named(name))


def test_the_listed_names_are_those_that_work_and_those_in_the_source_are_pefts():
    assert peft_names() == TUNERS
    assert peft_types() == set(peft_configs())


@pytest.mark.parametrize("model", ["deberta_v2", "bart", "t5", "distilbert"])
@every_tuner
def test_a_tuner_finds_its_matrices_in_every_family(name, model):
    trainable = [n for n, p in placed(name, model).named_parameters() if p.requires_grad]
    assert trainable
    assert name != "beft" or not any(".q" in n or "query" in n for n in trainable)


@every_tuner
def test_the_count_without_weights_is_that_of_the_placed_tuner(name, tmp_path):
    base = TINY["llama"]()
    base.config.save_pretrained(tmp_path)
    assert counted(name, str(tmp_path))["trainable"] == sum(
        p.numel() for p in placed(name).parameters() if p.requires_grad
    )


def test_ia3_scales_keys_values_and_the_input_of_the_second_matrix_of_the_ffn():
    (part,) = build_method("ia3", LLAMA).config.parts
    assert part.target_modules == {"k_proj", "v_proj", "down_proj"}
    assert part.feedforward_modules == {"down_proj"}
    adapted = placed("ia3", "roberta")
    sides = {
        name.split("layer.0.")[1].split(".ia3")[0]: tuple(parameter.shape)
        for name, parameter in adapted.named_parameters()
        if "ia3" in name and ".layer.0." in name
    }
    # (1, n) scales an input of n numbers, (n, 1) an output.
    assert sides == {
        "attention.self.key": (32, 1), "attention.self.value": (32, 1), "output.dense": (1, 48),
    }  # fmt: skip


@pytest.mark.parametrize("model", ["llama", "roberta", "gpt2"])
def test_ln_tuning_trains_every_norm_and_nothing_else(model):
    adapted = placed("ln_tuning", model)
    owners = {n for n, p in adapted.named_parameters() if p.requires_grad}
    norms = [m for m in (TINY | ARCHITECTURES)[model]().modules() if "Norm" in type(m).__name__]
    assert len(owners) == sum(len(list(norm.parameters())) for norm in norms)


# Tuners of PEFT that take no Conv1D, GPT-2's kind of linear layer.
WITHOUT_CONV1D = (
    "adamss", "beft", "boft", "c3a", "delora", "glora", "hra", "lily", "loha", "lokr", "miss",
    "oft", "osf", "peanut", "psoft", "road", "shira", "supertuning",
)  # fmt: skip


@every_tuner
def test_a_tuner_works_on_fused_conv1d_or_is_refused_in_one_line(name):
    if name in WITHOUT_CONV1D:
        refused("Conv1D", lambda: placed(name, "gpt2"))
        return
    before, after = losses(placed(name, "gpt2"))
    assert before != after


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("adamss", {"use_asa": True}, "unknown override 'use_asa'"),
        ("lora", {"kasa_config": {}}, "unknown override 'kasa_config'"),
        ("dora+lmam", {"init_lora_weights": "corda"}, "corda needs calls of PEFT that lorada does"),
    ],
)
def test_a_setting_that_only_works_with_calls_of_peft_is_refused(name, setting, said):
    refused(said, lambda: build_method(name, LLAMA, **setting))


def test_starts_of_lora_that_need_no_call_of_peft_are_kept():
    for value in ("pissa", "pissa_niter_4", True):
        plan = build_method("lora", LLAMA, init_lora_weights=value)
        assert plan.config.parts[0].init_lora_weights == value


def test_a_setting_of_several_types_is_refused_with_all_that_it_takes():
    for value in ("pissa_niter_", "pisa"):
        said = f"lora.init_lora_weights='{value}': .* boolean.* or input should be 'gaussian'.*mica"
        refused(said, lambda: build_method("lora", LLAMA, init_lora_weights=value))  # noqa: B023


# Sums of methods, such as ``ia3+lora``: one adapter with the parts of each.


def test_the_parts_are_stacked_in_order_with_the_map_first():
    parts = build_method("ia3+lora+lmam", LLAMA).config.parts
    assert [part.peft_type for part in parts] == ["LMAM", "IA3", "LORA"]
    assert method_named("lora+ia3").part_names == ["lora", "ia3"]


def test_a_sum_has_the_settings_of_each_and_says_where_they_are_from():
    plan = build_method("ia3+lora", LLAMA)
    assert plan.config.parts[1].r == METHODS["lora"].parts["llama"]["lora"]["r"]
    assert plan.settings_from == (
        "ia3: not from the paper: PEFT's defaults, on the layers that PEFT chooses; "
        f"lora: {SOURCES['lora']['llama']}"
    )
    assert build_method("lora+quanta", LLAMA).settings_from == (
        f"lora: {SOURCES['lora']['llama']}; quanta: Table 17"
    )
    found = build_method("lora+ia3", BartConfig()).settings_from
    assert found.startswith(f"lora: {SOURCES['lora']['bart']}")
    assert "; ia3: not from the paper: " in found


def test_a_sum_trains_with_the_callbacks_and_arguments_of_each():
    plan = build_method("longlora+sora", LLAMA)
    kinds = [type(callback).__name__ for callback in plan.callbacks]
    assert kinds == ["ShiftedAttention", "SoraCallback"]
    assert plan.arguments == {**METHODS["longlora"].arguments, **METHODS["sora"].arguments}
    assert SHIFTED_ATTENTION in method_named("longlora+sora").callbacks
    assert build_method("hira+shira", LLAMA).prepare is not None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora+dora", "lora+dora: lora and dora each bring a lora part: leave one of them out"),
        ("ia3+ia3", "ia3+ia3: ia3 and ia3 each bring a ia3 part: leave one of them out"),
        ("lorada_a+lora+lmam", "lmam and lorada_a each bring a lmam part"),
        ("lora+full", "lora+full: full has no parts, so it cannot be in a sum"),
        ("bitfit+ia3", "bitfit+ia3: bitfit has no parts, so it cannot be in a sum"),
        ("longlora+shira", "shira trains with learning_rate=0.0005, another with "
                           "learning_rate=2e-05: leave one of them out"),
        ("lora+iaa3", "unknown method 'iaa3'; did you mean ia3"),
        *((name, f"method '{name}' has a + without a method beside it: leave it out")
          for name in ("lora+", "+lora", "ia3+ +lora", "lora++lmam", "+lmam", "lora+lmam+")),
        ("lora+poly", "PEFT's poly cannot be used as a method"),
    ],
)  # fmt: skip
def test_methods_that_cannot_be_one_adapter_say_why(name, said):
    refused(re.escape(said), lambda: method_named(name))


def test_a_sum_is_described_for_the_models_that_each_has_settings_for():
    row = describe("dora+ia3")
    assert row["parts"] == ["lora", "ia3"]
    assert row["models"] == ["llama", "roberta", "bart"]
    assert list(row["settings"]["bart"]) == ["lora", "ia3"]


@pytest.mark.parametrize("name", ["lora+vera", "oft+lora", "ia3+lora"])
def test_both_parts_on_one_matrix_learn(name):
    options = {"lora": {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}}
    model = placed(name, **options)
    model(input_ids=IDS, labels=IDS).loss.backward()
    moving = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(".lora_" in n for n in moving)
    assert any(".lora_" not in n for n in moving)
