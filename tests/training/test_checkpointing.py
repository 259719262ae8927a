"""``activation_checkpointing``: the same losses and gradients, and when ``auto`` takes ``full``."""

import json
from functools import partial

import fake_devices
import pytest
import torch
from conftest import assert_close
from folders import ROWS, llama_folder, rows_file
from library.llama_layer import kept_bytes
from peft import get_peft_model
from trained_runs import QUICK
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
from lorada.support.processes import GPU_SHARE
from lorada.training.load_recipe import load_recipe
from lorada.training.memory import KEPT_16_BIT, KEPT_32_BIT, needs_recomputing
from lorada.training.train import train

on = fake_devices.on
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
    losses = [torch.tensor([e["loss"] for e in r.history]) for r in (plain, again)]
    same(losses[1], losses[0])
    for step, other in zip(found.steps, expected.steps, strict=True):
        assert step.keys() == other.keys()
        for name, gradient in other.items():
            same(step[name], gradient)


@pytest.mark.more
@pytest.mark.fp64
def test_losses_and_gradients_are_those_of_off(asked):
    check_same(asked, "dtype=float64")


@pytest.mark.more
def test_in_bfloat16_layers_that_run_again_compute_what_they_did(asked):
    check_same(asked, "dtype=bfloat16", same=partial(torch.testing.assert_close, rtol=0, atol=0))


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.bfloat16, KEPT_16_BIT), (torch.float32, KEPT_32_BIT)]
)
def test_auto_reckons_with_what_torch_keeps_of_a_layer_on_a_card(dtype, kept, monkeypatch):
    def as_on_a_card(x, p, training, inplace=False):
        """A dropout whose mask has one byte an entry; a CPU keeps one in the dtype of the input."""
        return torch.native_dropout(x, p, training)[0]

    monkeypatch.setattr(torch.nn.functional, "dropout", as_on_a_card)
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
    """Makes this a machine with an accelerator of so many GiB, some of which others may use."""

    def set_card(kind, gib=24, used=0):
        on(kind)
        for name in ("cuda", "xpu"):
            module = getattr(torch, name)
            monkeypatch.setattr(module, "mem_get_info", lambda: ((gib - used) * GIB, gib * GIB))
            monkeypatch.setattr(module, "memory_reserved", lambda: 0)
            monkeypatch.setattr(module, "memory_allocated", lambda: 0)

    return set_card


# A row of 4096 tokens in 14 layers of width 2048 keeps 6.6 GiB in 16 bits.
@pytest.mark.parametrize(
    ("device", "settings", "more", "about"),
    [
        (None, "max_length=4096", {}, None),
        ("mps", "max_length=4096", {}, None),
        ("cuda", "dtype=mixed max_length=512", {}, None),  # 8 rows of 512 tokens, 9 GiB
        ("cuda", "dtype=mixed max_length=512", {"sequences_per_row": 4}, 28),
        ("cuda", "dtype=mixed max_length=512", {"trains_everything": True}, 23),
        ("cuda", "dtype=mixed max_length=4096", {}, 54),
        ("xpu", "dtype=mixed max_length=4096", {}, 54),
        ("cuda", "dtype=mixed max_length=4096 per_device_train_batch_size=1", {}, None),
        ("cuda", "dtype=float32 max_length=2048", {}, 48),
        ("cuda", "dtype=mixed max_length=99999", {}, 54),  # the context ends at 4096
    ],
)
def test_auto_takes_full_where_a_step_would_hardly_fit_and_says_so(
    asked, card, caplog, device, settings, more, about
):
    card(device)
    settings = ["per_device_train_batch_size=8", *settings.split()]
    assert needs_recomputing(asked("auto", *settings), LARGE, **more) == (about is not None)
    said = (
        f"activation_checkpointing=auto takes full, as weights and activations of a step would "
        f"be about {about} of the 24 GiB that are free: off is faster where they fit"
    )
    assert caplog.messages == ([] if about is None else [said])
    assert needs_recomputing(asked("full"), LARGE)
    assert not needs_recomputing(asked("off", *settings), LARGE)


LLAMA_8B = LlamaConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, vocab_size=128256, max_position_embeddings=131072,
)  # fmt: skip


@pytest.mark.parametrize(
    ("gib", "used", "share", "settings", "again"),
    [
        (80, 0, "1", "max_length=512", False),  # 45 GiB: 8B in bf16, 8 rows of 512 tokens
        (80, 0, "1", "max_length=2048", True),
        (80, 40, "1", "max_length=512", True),  # another process has half of it
        (80, 0, "0.5", "max_length=512", True),  # two jobs share it, and begin at once
        (24, 0, "1", "max_length=512", True),
        (24, 0, "1", "max_length=512 quantization=nf4 per_device_train_batch_size=2", False),
    ],
)
def test_an_8b_model_keeps_its_activations_where_they_fit(
    asked, card, monkeypatch, gib, used, share, settings, again
):
    card("cuda", gib, used)
    monkeypatch.setenv(GPU_SHARE, share)
    asked_for = ["per_device_train_batch_size=8", "dtype=mixed", *settings.split()]
    assert needs_recomputing(asked("auto", *asked_for), LLAMA_8B) == again


def test_what_an_earlier_model_of_the_process_has_left_is_free(asked, card, monkeypatch):
    card("cuda", 80, used=78)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 76 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1 * GIB)
    assert not needs_recomputing(asked("auto", "dtype=mixed", "max_length=512"), LLAMA_8B)


@pytest.mark.parametrize("make", [BartConfig, MusicgenDecoderConfig, BltConfig])
def test_auto_knows_both_halves_of_a_model_and_leaves_alone_what_it_does_not_know(
    asked, card, make
):
    config = (
        make(d_model=1024, encoder_layers=6, decoder_layers=6) if make is BartConfig else make()
    )
    card("cuda", gib=6)
    settings = ("dtype=mixed", "max_length=1024", "per_device_train_batch_size=8")
    found = needs_recomputing(asked("auto", *settings), config)
    assert found == (make is BartConfig)  # 6 GiB


def test_auto_is_the_default_and_leaves_out_what_cannot_be(asked, card, llama, monkeypatch):
    assert load_recipe(None, [], {"model": llama, "output": "-"}).activation_checkpointing == "auto"
    card("cuda", gib=1)
    assert not needs_recomputing(asked("auto", "use_cpu=true"), LARGE)
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        assert not needs_recomputing(asked("auto", f"training.{name}=false"), LARGE)
    assert needs_recomputing(asked("auto"), LARGE)
    kind = type(meta_model.meta_model(LARGE))
    monkeypatch.setattr(kind, "supports_gradient_checkpointing", False)
    assert not needs_recomputing(asked("auto"), LARGE)


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(works, llama, tmp_path):
    data, run = rows_file(tmp_path / "rows.jsonl"), tmp_path / "run"
    words = ["train", "--model", llama, "--data", data, "--output", run, "--dry-run", *QUICK]
    assert "activation_checkpointing=auto takes off\n" in works(*words)[0]
    found = json.loads(works(*words, "--json")[0])
    assert found["activation_checkpointing"] == "off"
    assert found["rows"] == len(ROWS)
    assert not run.exists()
