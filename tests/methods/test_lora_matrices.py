"""LoRA+ and LoRA-FA as `lorada train` trains them, step by step beside the equations."""

import json
from functools import partial

import pytest
import torch
from folders import adapter_weights, refused
from peft import LoraConfig, PeftModel
from torch import Tensor
from trained_runs import QUICK, assert_same, before_its_end, run_recipe
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback

from lorada.compare.spec import choices_of, parts_of
from lorada.inference.load import load_run
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

# With an ε that is not next to 0, the scale of a gradient matters.
RATE, DECAY, EPSILON, BETAS = 1e-2, 0.1, 1e-3, (0.9, 0.999)
# Constant rates, and a B that is not zero, so that A has a gradient at the first step.
STEPS = [
    *QUICK, "max_steps=3", f"learning_rate={RATE}", f"weight_decay={DECAY}",
    f"adam_epsilon={EPSILON}",
    "lr_scheduler_type=constant", "lora.init_lora_weights=false", "lora.lora_dropout=0",
]  # fmt: skip
recipe = partial(run_recipe, STEPS, rows="rows")


class StepsByHand(TrainerCallback):
    """Does the steps of AdamW beside the Trainer, each parameter at the rate that is expected."""

    def __init__(self, rate_of, corrects_b: bool = False) -> None:
        self.rate_of, self.corrects_b = rate_of, corrects_b
        self.expected: dict[str, Tensor] = {}
        self.actual: dict[str, Tensor] = {}
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.expected = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.decayed = set(Trainer.get_decay_parameter_names(None, model))

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        step = state.global_step + 1
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.detach().clone()
            if self.corrects_b and ".lora_B." in name:
                layer = model.get_submodule(name.partition(".lora_B.")[0])
                a = layer.lora_A["default"].weight.detach()
                gradient = gradient @ torch.linalg.inv(a @ a.T) / layer.scaling["default"] ** 2
            self._step(name, gradient, step)

    def _step(self, name: str, gradient: Tensor, step: int) -> None:
        zero = torch.zeros_like(gradient)
        first, second = self.moments.get(name, (zero, zero))
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        self.moments[name] = first, second
        direction = (first / (1 - BETAS[0] ** step)) / (
            (second / (1 - BETAS[1] ** step)).sqrt() + EPSILON
        )
        rate, weight = self.rate_of(name), self.expected[name]
        decay = DECAY if name in self.decayed or ".lmam." in name else 0.0
        self.expected[name] = weight * (1 - rate * decay) - rate * direction

    def on_train_end(self, args, state, control, model, **kwargs):
        self.actual = {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_steps(by_hand: StepsByHand) -> None:
    """The training ended where the steps by hand ended."""
    assert by_hand.moments
    for name, expected in by_hand.expected.items():
        torch.testing.assert_close(by_hand.actual[name], expected, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("method", "setting", "ratio"),
    [
        ("lora", "loraplus_lr_ratio=4", 4),
        ("dora", "loraplus_lr_ratio=2", 2),
        ("lora+lmam", "lora.loraplus_lr_ratio=8", 8),
        ("lorada_la", "loraplus_lr_ratio=0.5", 0.5),
        ("loraplus", "r=4", 16),
    ],
)
def test_b_takes_steps_of_adamw_at_its_multiple_of_the_rate(
    place, tmp_path, method, setting, ratio
):
    def rate_of(name: str) -> float:
        if ".lora_B." in name:
            return RATE * ratio
        return RATE * 0.4 if ".lmam." in name else RATE

    by_hand = StepsByHand(rate_of)
    asked = recipe(place, tmp_path / "run", setting, method=method)
    train(asked, quiet=True, callbacks=[by_hand])
    assert {".lora_B." in name for name in by_hand.moments} == {True, False}
    assert_steps(by_hand)


@pytest.mark.parametrize("method", ["lorafa", "lorafa+lmam"])
def test_lorafa_keeps_a_and_corrects_the_gradient_of_b(place, tmp_path, method):
    by_hand = StepsByHand(lambda name: RATE * 0.4 if ".lmam." in name else RATE, corrects_b=True)
    run = train(
        recipe(place, tmp_path / "run", "r=4", method=method), quiet=True, callbacks=[by_hand]
    )
    assert not any(".lora_A." in name for name in by_hand.moments), "A has a gradient"
    assert any(".lora_B." in name for name in by_hand.moments)
    assert_steps(by_hand)
    saved = adapter_weights(run.run)
    drawn = {name for name in by_hand.expected if ".lora_A." in name}
    assert drawn
    for name in drawn:  # which stayed as it was drawn
        assert torch.equal(saved[name.replace(".default", "")], by_hand.expected[name])
    trained = sum(by_hand.expected[name].numel() for name in by_hand.moments)
    assert run.result.parameters.trainable == trained


@pytest.mark.parametrize("method", ["loraplus", "lorafa"])
def test_an_adapter_of_either_is_plain_lora_for_peft(place, tmp_path, method):
    run = train(recipe(place, tmp_path / "run", "r=4", method=method), quiet=True).run
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config.keys() <= LoraConfig().to_dict().keys()
    base, ids = AutoModelForCausalLM.from_pretrained(place / "llama"), torch.arange(3, 12)[None]
    expected = load_run(run).model(ids).logits
    assert torch.equal(PeftModel.from_pretrained(base, run / "adapter")(ids).logits, expected)


@pytest.mark.parametrize("method", ["loraplus+lmam", "lorafa+lmam"])
def test_a_resumed_run_ends_as_one_that_was_not_stopped(place, tmp_path, method):
    settings = ("save_steps=1", "save_total_limit=3", "r=4")
    run = train(recipe(place, tmp_path / "run", *settings, method=method), quiet=True).run
    cut = before_its_end(run, tmp_path / "cut")
    again = train(recipe(place, cut, *settings, method=method), resume=True, quiet=True)
    assert again.result.resumed_from == "checkpoint-1"
    assert_same(adapter_weights(cut), adapter_weights(run))


def test_a_training_that_goes_on_may_have_another_ratio(place, tmp_path):
    first = train(recipe(place, tmp_path / "first", method="lora"), quiet=True).run
    by_hand = StepsByHand(lambda name: 3 * RATE if ".lora_B." in name else RATE)
    settings = [setting for setting in STEPS if not setting.startswith("lora.")]
    asked = run_recipe(
        [*settings, "loraplus_lr_ratio=3"], place, tmp_path / "run", rows="rows", method="lora",
        from_adapter=str(first),
    )  # fmt: skip
    train(asked, quiet=True, callbacks=[by_hand])
    assert_steps(by_hand)


def test_a_comparison_chooses_between_ratios():
    choices = choices_of("lora+lmam:loraplus_lr_ratio=2|4|16")
    ratios = [parts_of(choice).parts["lora"]["loraplus_lr_ratio"] for choice in choices]
    assert ratios == [2, 4, 16]


@pytest.mark.parametrize("value", ["0", "-1", "true", ".inf", "much"])
def test_a_ratio_that_is_no_number_above_0_is_refused_in_one_line(value):
    pair = f"loraplus_lr_ratio={value}"
    given = {"method": "lora", "model": "-", "output": "-"}
    refused(r"lora\.loraplus_lr_ratio=", lambda: load_recipe(None, [pair], given))


def test_lorafa_refuses_a_ratio_of_the_rate_of_an_a_that_does_not_train(place, tmp_path):
    asked = recipe(place, tmp_path / "run", "loraplus_lr_ratio=4", method="lorafa")
    refused("and no A trains here: leave it out", lambda: train(asked, quiet=True))
