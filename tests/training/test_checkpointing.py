"""``activation_checkpointing``: the same losses and gradients, and when ``auto`` takes ``full``."""

import json
from functools import partial

import pytest
import test_device_settings
import torch
from conftest import assert_close
from folders import ROWS, llama_folder, rows_file
from trained import QUICK
from transformers import GPT2Config, LlamaConfig, TrainerCallback

from lorada.methods import meta_model
from lorada.training.arguments import recomputes
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

on = test_device_settings.on
# Without dropout, whose random numbers are others in fp64.
PLAIN = ["lora.lora_dropout=0", "bottleneck.dropout=0", "max_steps=3"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    return str(llama_folder(folder, attention_dropout=0.0, num_hidden_layers=4))


@pytest.fixture
def asked(llama, tmp_path):
    def make(setting, *overrides):
        data = rows_file(tmp_path / "rows.jsonl")
        words = [f"activation_checkpointing={setting}", *QUICK, *overrides]
        options = {"method": "lorada_la", "model": llama, "data": str(data)}
        return load_recipe(None, words, {**options, "output": str(tmp_path / f"run-{setting}")})

    return make


class KeepGradients(TrainerCallback):
    """Keeps the gradients of each step, and whether the model computed activations again."""

    def __init__(self):
        self.steps, self.recomputes = [], set()

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.steps.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
        self.recomputes.add(model.is_gradient_checkpointing)
        assert not (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")


def trained(recipe):
    kept = KeepGradients()
    return train(recipe, quiet=True, callbacks=[kept]).result, kept


def check_same(asked, setting, same=assert_close):
    plain, expected = trained(asked("off", *PLAIN, setting))
    again, found = trained(asked("full", *PLAIN, setting))
    assert (expected.recomputes, found.recomputes) == ({False}, {True})
    losses = [torch.tensor([e["loss"] for e in r["history"]]) for r in (plain, again)]
    same(losses[1], losses[0])
    for step, other in zip(found.steps, expected.steps, strict=True):
        assert step.keys() == other.keys()
        for name, gradient in other.items():
            same(step[name], gradient)


@pytest.mark.fp64
def test_losses_and_gradients_are_those_of_off(asked):
    check_same(asked, "dtype=float64")


def test_in_bfloat16_layers_that_run_again_compute_what_they_did(asked):
    check_same(asked, "dtype=bfloat16", same=partial(torch.testing.assert_close, rtol=0, atol=0))


SMALL = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=4096, vocab_size=96,
)  # fmt: skip
LARGE = LlamaConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=24)


@pytest.mark.parametrize(
    ("device", "config", "length", "full"),
    [
        (None, LARGE, 4096, False),
        ("mps", LARGE, 4096, False),
        ("cuda", LARGE, 64, True),
        ("xpu", LARGE, 64, True),
        ("cuda", SMALL, 1024, False),
        ("cuda", SMALL, 1025, True),
        ("cuda", GPT2Config(n_positions=512, n_layer=1, n_embd=32, n_head=2), 1025, False),
    ],
)
def test_auto_takes_full_on_an_accelerator_for_large_models_and_long_rows_and_says_so(
    asked, on, caplog, device, config, length, full
):
    on(device)
    long = f"max_length={length}"
    assert recomputes(asked("auto", long), config) == full
    said = (
        "activation_checkpointing=auto takes full for more than 1,000,000,000 parameters or 1,024 "
        "tokens a row: activation_checkpointing=off is faster where the memory suffices"
    )
    assert caplog.messages == [said] * full
    assert recomputes(asked("full"), config)
    assert not recomputes(asked("off", long), config)


def test_auto_is_the_default_and_leaves_out_what_cannot_be(asked, on, llama, monkeypatch):
    assert load_recipe(None, [], {"model": llama, "output": "-"}).activation_checkpointing == "auto"
    on("cuda")
    assert not recomputes(asked("auto", "use_cpu=true"), LARGE)
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        assert not recomputes(asked("auto", f"training.{name}=false"), LARGE)
    assert recomputes(asked("auto"), LARGE)
    kind = type(meta_model.meta_model(LARGE))
    monkeypatch.setattr(kind, "supports_gradient_checkpointing", False)
    assert not recomputes(asked("auto"), LARGE)


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(works, llama, tmp_path):
    data, run = rows_file(tmp_path / "rows.jsonl"), tmp_path / "run"
    words = ["train", "--model", llama, "--data", data, "--output", run, "--dry-run", *QUICK]
    assert "activation_checkpointing=auto takes off\n" in works(*words)[0]
    found = json.loads(works(*words, "--json")[0])
    assert found["activation_checkpointing"] == "off"
    assert found["rows"] == len(ROWS)
    assert not run.exists()
