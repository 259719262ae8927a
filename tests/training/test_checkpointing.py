"""``activation_checkpointing``: the same losses and gradients, and when ``auto`` takes ``full``."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import test_device_settings
import torch
from conftest import assert_close
from folders import ROWS
from trained import QUICK, run_recipe
from transformers import GPT2Config, LlamaConfig, TrainerCallback

from lorada.methods import meta_model
from lorada.runs.recipe import Recipe
from lorada.training import training_memory
from lorada.training.train import train

on = test_device_settings.on
LLAMA = {"attention_dropout": 0.0, "num_hidden_layers": 4}
# Without dropout, whose random numbers are others in fp64.
PLAIN = ["lora.lora_dropout=0", "bottleneck.dropout=0", "max_steps=3"]


@pytest.fixture
def asked(place, tmp_path):
    def make(setting, *pairs):
        run, own = tmp_path / f"run-{setting}", f"activation_checkpointing={setting}"
        return run_recipe(QUICK, place, run, own, *pairs, rows="rows", method="lorada_la")

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
    same(*(torch.tensor([e["loss"] for e in one["history"]]) for one in (again, plain)))
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


@pytest.fixture
def takes_full(on, monkeypatch):
    """Whether a training computes activations again where a step does not fit, or as is said."""
    card = SimpleNamespace(total_memory=100 * 2**30)
    for name in ("cuda", "xpu"):
        monkeypatch.setattr(getattr(torch, name), "get_device_properties", lambda device: card)

    def ask(recipe, config, gib=90.0):
        found = (None, "no shape") if gib is None else ({"off": gib * 2**30}, "")
        monkeypatch.setattr(training_memory, "step_bytes", lambda *given: found)
        return training_memory.recomputes(SimpleNamespace(recipe=recipe, config=config))

    return ask


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
def test_auto_takes_full_on_an_accelerator_where_large_models_and_long_rows_do_not_fit(
    asked, on, takes_full, caplog, device, config, length, full
):
    on(device)
    long, line = f"max_length={length}", "activation_checkpointing=auto takes full: "
    assert not takes_full(asked("auto", long), config, 85.0)
    assert takes_full(asked("auto", long), config) == full
    assert takes_full(asked("auto", long), config, None) == full
    assert caplog.messages == full * [
        f"{line}a step with off needs 90.0 GiB of this device's 100.0 GiB",
        f"{line}the memory of a step cannot be computed: no shape",
    ]
    assert takes_full(asked("full"), config)
    assert not takes_full(asked("off", long), config)


def test_auto_is_the_default_and_leaves_out_what_cannot_be(asked, on, takes_full, monkeypatch):
    assert Recipe(model="-", output="-").activation_checkpointing == "auto"
    on("cuda")
    assert not takes_full(asked("auto", "use_cpu=true"), LARGE)
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        assert not takes_full(asked("auto", f"training.{name}=false"), LARGE)
    assert takes_full(asked("auto"), LARGE)
    kind = type(meta_model.meta_model(LARGE))
    monkeypatch.setattr(kind, "supports_gradient_checkpointing", False)
    assert not takes_full(asked("auto"), LARGE)


DRY = {
    "lora": ([], "a step needs 0.00 GiB with off, 0.00 GiB with full"),
    "shira": (["r=1"], "the memory of a step cannot be computed (SHiRA's sparse weights"),
}


@pytest.mark.parametrize("method", DRY)
def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(works, place, tmp_path, method):
    (own, said), run = DRY[method], tmp_path / "run"
    words = ["train", "--method", method, "--model", place / "llama", "--output", run]
    words += ["--data", place / "rows.jsonl", "--dry-run", *QUICK, *own]
    assert f"activation_checkpointing=auto takes off: {said}" in works(*words)[0]
    found = json.loads(works(*words, "--json")[0])
    assert (found["activation_checkpointing"], found["rows"]) == ("off", len(ROWS))
    if method == "lora":
        assert found["step_bytes"]["full"] < found["step_bytes"]["off"]
    else:
        assert found["step_bytes"] is None
    assert not run.exists()
