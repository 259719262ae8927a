"""``activation_checkpointing``: the same losses and gradients, and when ``auto`` takes ``full``."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import test_device_settings
import torch
from conftest import assert_close
from folders import ROWS, llama_folder, rows_file
from library.llama_layer import kept_bytes
from peft import get_peft_model
from trained import QUICK
from transformers import (
    BartConfig,
    BltConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MusicgenDecoderConfig,
    TrainerCallback,
)

from lorada.methods import meta_model
from lorada.methods.build import build_method
from lorada.training.arguments import KEPT, recomputes
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


@pytest.mark.parametrize(("dtype", "kept"), zip((torch.bfloat16, torch.float32), KEPT, strict=True))
def test_auto_reckons_with_what_torch_keeps_of_a_layer(dtype, kept):
    width, layers, ids = 256, 4, torch.arange(512).view(2, 256) % 64
    config = LlamaConfig(
        hidden_size=width, intermediate_size=896, num_hidden_layers=layers, vocab_size=64,
        num_attention_heads=8, num_key_value_heads=2,
    )  # fmt: skip
    base = LlamaForCausalLM(config).to(dtype)
    model = get_peft_model(base, build_method("lora+lmam", config).config)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = kept_bytes(lambda: model(input_ids=ids, labels=ids).loss, [*model.parameters()])
    assert 0.8 * kept < found / (ids.numel() * layers * width) < kept


# 1e9 parameters: 2 GiB of weights in 16 bits, 4 in fp32.
LARGE = LlamaConfig(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=14, max_position_embeddings=4096
)
GIB = 2**30


@pytest.fixture
def card(on, monkeypatch):
    """Makes this a machine with an accelerator of so many GiB."""

    def set_card(kind, gib=24):
        on(kind)
        has = SimpleNamespace(total_memory=gib * GIB)
        for name in ("cuda", "xpu"):
            monkeypatch.setattr(getattr(torch, name), "get_device_properties", lambda device: has)

    return set_card


# A row of 4096 tokens in 14 layers of width 2048 keeps 9.8 GiB in 16 bits.
@pytest.mark.parametrize(
    ("device", "settings", "more", "about"),
    [
        (None, "max_length=4096", {}, None),
        ("mps", "max_length=4096", {}, None),
        ("cuda", "dtype=mixed max_length=512", {}, None),  # 8 rows of 512 tokens, 12 GiB
        ("cuda", "dtype=mixed max_length=512", {"sequences": 2}, 22),
        ("cuda", "dtype=mixed max_length=512", {"whole": True}, 26),
        ("cuda", "dtype=mixed max_length=4096", {}, 81),
        ("xpu", "dtype=mixed max_length=4096", {}, 81),
        ("cuda", "dtype=mixed max_length=4096 per_device_train_batch_size=1", {}, None),
        ("cuda", "dtype=float32 max_length=2048", {}, 59),
        ("cuda", "dtype=mixed max_length=99999", {}, 81),  # the context ends at 4096
    ],
)
def test_auto_takes_full_where_a_step_would_hardly_fit_and_says_so(
    asked, card, caplog, device, settings, more, about
):
    card(device)
    settings = ["per_device_train_batch_size=8", *settings.split()]
    assert recomputes(asked("auto", *settings), LARGE, **more) == (about is not None)
    said = (
        f"activation_checkpointing=auto takes full, as weights and activations of a step would "
        f"be about {about} of the 24 GiB here: off is faster where they fit"
    )
    assert caplog.messages == ([] if about is None else [said])
    assert recomputes(asked("full"), LARGE)
    assert not recomputes(asked("off", *settings), LARGE)


@pytest.mark.parametrize("make", [BartConfig, MusicgenDecoderConfig, BltConfig])
def test_auto_knows_both_halves_of_a_model_and_leaves_alone_what_it_does_not_know(
    asked, card, make
):
    config = (
        make(d_model=1024, encoder_layers=6, decoder_layers=6) if make is BartConfig else make()
    )
    card("cuda", gib=8)
    settings = ("dtype=mixed", "max_length=1024", "per_device_train_batch_size=8")
    found = recomputes(asked("auto", *settings), config)
    assert found == (make is BartConfig)  # 9 GiB


def test_auto_is_the_default_and_leaves_out_what_cannot_be(asked, card, llama, monkeypatch):
    assert load_recipe(None, [], {"model": llama, "output": "-"}).activation_checkpointing == "auto"
    card("cuda", gib=1)
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
