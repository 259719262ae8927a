"""Sums of methods, such as ``ia3+lora``: one adapter with the parts of each."""

import re

import pytest
from conftest import TINY
from folders import refused
from test_peft_methods import IDS, placed
from transformers import BartConfig

from lorada import METHODS, build_method
from lorada.methods.lookup import describe, method_named
from lorada.methods.method import SHIFTED_ATTENTION

LLAMA = TINY["llama"]().config


def test_the_parts_are_stacked_in_order_with_the_map_first():
    parts = build_method("ia3+lora+lmam", LLAMA).config.parts
    assert [part.peft_type for part in parts] == ["LMAM", "IA3", "LORA"]
    assert method_named("lora+ia3").part_names == ["lora", "ia3"]


def test_a_sum_has_the_settings_of_each_and_says_where_they_are_from():
    plan = build_method("ia3+lora", LLAMA)
    assert plan.config.parts[1].r == METHODS["lora"].parts["llama"]["lora"]["r"]
    assert plan.settings_from == (
        "not from the paper: ia3: PEFT's defaults, on the layers that PEFT chooses; "
        "lora: Tables 4, 5 and 10"
    )
    assert build_method("lora+quanta", LLAMA).settings_from == (
        "lora: Tables 4, 5 and 10; quanta: Table 17"
    )
    found = build_method("lora+ia3", BartConfig()).settings_from
    assert found.startswith("not from the paper: lora: ")
    assert "; ia3: " in found


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
