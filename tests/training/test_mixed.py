"""``dtype=mixed``, which ``auto`` takes on a card: a base in bf16, and fp32 where it trains."""

from functools import partial
from itertools import cycle

import pytest
import torch
from folders import LLAMA, byte_tokenizer, refused, saved
from method_cases import defined
from trained_runs import QUICK, run_recipe
from transformers import Qwen2ForCausalLM

from lorada import METHODS
from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.training.arguments import training_arguments
from lorada.training.inputs import prepare_training
from lorada.training.setup import set_up
from lorada.training.train import train

BF16 = torch.bfloat16
NAMES = [name for name in METHODS if defined(name, "llama")]
PACKED = [*(name for name in NAMES if name != "longlora"), "bitfit"]  # whose groups span rows
WHOLE = ("full", "owlore", "owlore_full")  # methods that train every weight at some time


@pytest.fixture
def recipe(place, tmp_path):
    settings = [*QUICK, "max_steps=2", "save_strategy=no", "dtype=mixed"]
    return partial(run_recipe, settings, place, tmp_path / "run")


@pytest.mark.parametrize(("method", "rows"), [*zip(NAMES, cycle(["rows", "labels"]))])
def test_what_trains_of_a_base_in_bf16_is_in_fp32(recipe, method, rows):
    setup = set_up(prepare_training(recipe(method=method, rows=rows)), [], quiet=True)
    weights = dict(setup.model.named_parameters())
    trained = {name: each for name, each in weights.items() if each.requires_grad}
    frozen = [each for name, each in weights.items() if name not in trained]
    assert {each.dtype for each in trained.values()} == {torch.float32}
    assert method in WHOLE or any(each.dtype == BF16 for each in frozen)
    setup.trainer.train()
    assert all(each.grad is None or each.grad.dtype == torch.float32 for each in trained.values())


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """A decoder with biases, which BitFit trains."""
    folder = tmp_path_factory.mktemp("biased") / "qwen2"
    return saved(folder, Qwen2ForCausalLM, byte_tokenizer(), LLAMA)


@pytest.mark.parametrize("method", PACKED)
def test_packed_rows_train_with_every_method(recipe, biased, method):
    """Before that, under autocast too, they are read once, to see that none sees another."""
    asked = recipe("packing=true", "dev_rows=4", method=method, rows="rows", model=str(biased))
    setup = set_up(prepare_training(asked), [], quiet=True)
    setup.trainer.train()
    assert any("eval_loss" in entry for entry in setup.trainer.state.log_history)


@pytest.mark.parametrize("method", ["bitfit", "longlora"])
def test_texts_are_written_under_autocast_while_training(recipe, method):
    asked = recipe(
        "predict_with_generate=true", "dev_rows=2", "max_steps=1",
        method=method, rows="rows", model="bart",
    )  # fmt: skip
    history = train(asked, quiet=True).result.history
    assert any("eval_exact_match" in entry for entry in history)


def moved(recipe, dtype: str) -> float:
    """The share of a base's weights that six steps at a low rate change."""
    pairs = ("max_steps=6", "learning_rate=2e-5", f"dtype={dtype}", "warmup_steps=0")
    setup = set_up(prepare_training(recipe(*pairs, method="full", rows="rows")), [], quiet=True)
    matrices = [each for each in setup.model.model.layers.parameters() if each.dim() > 1]
    before = [each.detach().clone() for each in matrices]
    setup.trainer.train()
    changed = [(a != b).float().mean() for a, b in zip(matrices, before, strict=True)]
    return float(torch.stack(changed).mean())


def test_small_updates_are_not_lost_unless_bfloat16_is_asked_for_by_name(recipe, caplog):
    assert moved(recipe, "mixed") > 0.99
    assert "small updates" not in caplog.text
    assert moved(recipe, "bfloat16") < 0.5
    assert "dtype=bfloat16: what trains in the base loses small updates" in caplog.text
    assert "dtype=mixed keeps it in float32" in caplog.text


@pytest.mark.parametrize("method", ["lora", "full", "bitfit"])
def test_a_mixed_run_is_saved_and_scored(recipe, place, method):
    asked = recipe(method=method, rows="labels", model="bert")
    run = load_run(train(asked, quiet=True).run)
    assert run.recipe.dtype == "mixed"
    assert {each.dtype for each in run.model.parameters()} <= {BF16, torch.float32}
    assert evaluate(run, str(place / "labels.jsonl"))["n"] == 9


def test_autocast_cannot_be_switched_off_beside_it(recipe):
    refused(
        "dtype=mixed trains under autocast",
        lambda: training_arguments(recipe("bf16=false", rows="rows")),
    )


@pytest.mark.parametrize("method", ["lorada_la", "full", "lora+houlsby"])
def test_fp16_with_a_scaled_loss_trains_what_is_in_fp32(recipe, method, monkeypatch):
    # accelerate scales on a card alone, so the steps of its scaler are made here.
    monkeypatch.setattr("lorada.training.arguments.device_settings", lambda given: {"fp16": True})
    asked = recipe("dtype=mixed_float16", method=method, rows="labels")
    setup = set_up(prepare_training(asked), [], quiet=True)
    model = setup.model.train()
    trained = [each for each in model.parameters() if each.requires_grad]
    assert {each.dtype for each in trained} == {torch.float32}
    assert method == "full" or torch.float16 in {each.dtype for each in model.parameters()}
    scaler, optimizer = torch.amp.GradScaler("cpu", 2.0**10), torch.optim.AdamW(trained, 1e-3)
    batch = next(iter(setup.trainer.get_train_dataloader()))
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = setup.trainer.compute_loss(model, dict(batch))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    assert scaler.get_scale() == 2.0**10  # no gradient overflowed
    assert losses[-1] < losses[0]
