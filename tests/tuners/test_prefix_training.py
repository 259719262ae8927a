"""How many parameters a prefix has, how they start, and how they train."""

import pytest
import torch
from architectures import ARCHITECTURES
from conftest import TINY, assert_close
from peft import PeftModel, get_peft_model
from prefixes import (
    LENGTH,
    WIDTH,
    config_of,
    count,
    every_prefix,
    layers,
    networks,
    on_meta,
    trainable,
    trained,
)
from stacks import batch, logits, randomise
from torch import nn
from transformers import (
    BartConfig,
    BartModel,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
    Trainer,
    TrainingArguments,
)

from lorada import PrefixConfig
from lorada.tuners.prefix import PrefixLayer

pytestmark = pytest.mark.fp64

# Counting. 2·l·d a block; of a network l·d + (d + 1)·w a set of blocks, and 2·d·(w + 1) a block.


@pytest.mark.parametrize(
    ("name", "blocks", "width", "sets"),
    [("llama", 2, 16, 1), ("bert", 2, 32, 1), ("bart", 6, 32, 3), ("t5", 6, 32, 3)],
)
def test_the_count_is_that_of_the_formula(name, blocks, width, sets):
    flat = blocks * 2 * LENGTH * width
    network = sets * (LENGTH * 32 + 33 * WIDTH) + blocks * 2 * width * (WIDTH + 1)
    assert count(get_peft_model(ARCHITECTURES[name](), PrefixConfig(length=LENGTH))) == flat
    config = PrefixConfig(length=LENGTH, projection=WIDTH)
    model = get_peft_model(ARCHITECTURES[name](), config)
    assert count(model) == network
    model.fold()
    assert count(model) == flat


@pytest.mark.parametrize(
    ("model", "config", "length", "expected"),
    [
        (LlamaModel, LlamaConfig(), 30, 7_864_320),
        (LlamaModel, LlamaConfig(num_key_value_heads=8), 30, 7_864_320 // 4),
        (RobertaModel, RobertaConfig(), 32, 589_824),
        (BartModel, BartConfig(), 30, 2_211_840),
    ],
    ids=["llama-7b", "grouped-query attention", "roberta-base", "bart-large"],
)
def test_the_count_on_real_sizes(model, config, length, expected):
    assert count(on_meta(model, config, length=length)) == expected


def test_the_network_of_he_et_al_on_roberta_base_is_counted_and_folded():
    model = on_meta(RobertaModel, RobertaConfig(), length=16, projection=800)
    assert count(model) == 15_391_520
    model.fold()
    assert count(model) == 294_912


def test_encoder_decoders_have_three_networks():
    model = get_peft_model(ARCHITECTURES["bart"](), config_of("network", "alone", "bart"))
    assert networks(model.get_base_model()) == ["prefix_encoder", "prefix_decoder", "prefix_cross"]
    shared = {
        id(layer._network[0].host.get_submodule(f"prefix_{kind}")): id(layer._network[0])
        for kind, layer in zip(
            ["encoder"] * 2 + ["decoder", "cross"] * 2, layers(model), strict=True
        )
    }
    assert all(found == expected for found, expected in shared.items())
    assert len(shared) == 3


# The start.


@pytest.mark.parametrize(("options", "std"), [({}, 0.02), ({"initial_std": 1.0}, 1.0)])
def test_a_prefix_starts_from_its_normal_distribution_and_is_not_the_identity(options, std):
    torch.manual_seed(0)
    model = get_peft_model(TINY["llama"](), PrefixConfig(length=100, **options)).eval()
    for layer in layers(model):
        for start in (layer.lora_key["default"], layer.lora_value["default"]):
            assert start.std().item() == pytest.approx(std, rel=0.1)
            assert abs(start.mean().item()) < 0.1 * std
    inputs = batch("llama")
    with model.disable_adapter():
        plain = logits(model, inputs)
    # It takes its share of each softmax from the first step on.
    assert (logits(model, inputs) - plain).abs().max() > 0.1


def test_a_prefix_of_zeros_scales_attention_by_what_it_leaves():
    model = get_peft_model(TINY["bert"](attn_implementation="eager"), PrefixConfig(length=LENGTH))
    model.eval()
    module = layers(model)[0].host
    for layer in layers(model):
        for parameters in (layer.lora_key, layer.lora_value):
            nn.init.zeros_(parameters["default"])
    hidden = torch.randn(1, 6, 32)
    found, shares = module(hidden)
    with model.disable_adapter():
        plain, _ = module(hidden)
    left = shares.sum(-1).transpose(1, 2)[..., None]  # (B, T, H, 1)
    assert_close(found.view(1, 6, 4, 8), plain.view(1, 6, 4, 8) * left)
    assert (left < 1).all()


def test_a_network_is_the_one_of_the_formula_with_its_gradients():
    model = trained("network")
    base = model.get_base_model()
    network, blocks = base.prefix_self, layers(base)
    width = blocks[0].lora_out["default"].shape[0]
    reference = nn.Sequential(
        nn.Embedding(LENGTH, 32), nn.Linear(32, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2 * width)
    )
    ours = [network.lora_embedding, network.lora_hidden, network.lora_hidden_bias]
    ours = [parameters["default"] for parameters in ours]
    outs = [[layer.lora_out["default"] for layer in blocks],
            [layer.lora_out_bias["default"] for layer in blocks]]  # fmt: skip
    with torch.no_grad():
        joined = [torch.cat(parts) for parts in outs]
        for parameter, value in zip(reference.parameters(), [*ours, *joined], strict=True):
            parameter.copy_(value)
    expected = reference(torch.arange(LENGTH))
    found = torch.cat([part for layer in blocks for part in layer.prefix("default")], -1)
    assert_close(found, expected)

    weight = torch.randn_like(expected)
    found_gradients = torch.autograd.grad((found * weight).sum(), [*ours, *outs[0]])
    (expected * weight).sum().backward()
    wanted = [parameter.grad for parameter in reference.parameters()]
    for one, other in zip(found_gradients[:3], wanted[:3], strict=True):
        assert_close(one, other)
    assert_close(torch.cat(found_gradients[3:]), wanted[3])


# Training.


@pytest.mark.parametrize("reentrant", [True, False])
@every_prefix
def test_gradient_checkpointing_changes_no_gradient(prefix, reentrant):
    inputs = batch("llama")
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(TINY["llama"](), config_of(prefix, "in a stack", "llama"))
        randomise(model)
        model.train()
        if checkpointing:
            options = {"use_reentrant": reentrant}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
            model.enable_input_require_grads()
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in trainable(model).items()})
    for name, expected in gradients[0].items():
        assert_close(gradients[1][name], expected)
        assert expected.abs().max() > 0


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path):
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(5, 90, (8, 6))]

    def train(steps: int, resume_from: str | None = None) -> PeftModel:
        torch.manual_seed(0)
        model = get_peft_model(TINY["llama"](), config_of("network", "in a stack", "llama"))
        args = TrainingArguments(
            tmp_path, max_steps=steps, save_steps=2, per_device_train_batch_size=2, report_to=[],
            learning_rate=0.01, lr_scheduler_type="constant", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        Trainer(model, args, train_dataset=rows).train(resume_from_checkpoint=resume_from)
        return model

    half = trainable(train(2))
    whole = trainable(train(4))
    resumed = trainable(train(4, resume_from=str(tmp_path / "checkpoint-2")))
    assert list(whole) == list(resumed)
    for name, parameter in whole.items():
        assert torch.equal(parameter, resumed[name])
        assert not torch.equal(parameter, half[name])


# Where it goes, and what is refused.


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({"stacks": ["encoder"]}, {"encoder self"}),
        ({"stacks": ["decoder"]}, {"decoder self", "cross"}),
        ({"exclude_modules": ["encoder_attn"]}, {"encoder self", "decoder self"}),
        ({"target_modules": ["encoder_attn"]}, {"cross"}),
        ({}, {"encoder self", "decoder self", "cross"}),
    ],
)
def test_stacks_and_names_choose_the_blocks_of_an_encoder_decoder(options, blocks):
    model = get_peft_model(
        ARCHITECTURES["bart"](), PrefixConfig(length=LENGTH, layers_to_transform=[1], **options)
    )
    found = [n for n, m in model.get_base_model().named_modules() if isinstance(m, PrefixLayer)]
    kinds = {
        "model.encoder.layers.1.self_attn.prefix": "encoder self",
        "model.decoder.layers.1.self_attn.prefix": "decoder self",
        "model.decoder.layers.1.encoder_attn.prefix": "cross",
    }
    assert {kinds[name] for name in found} == blocks
