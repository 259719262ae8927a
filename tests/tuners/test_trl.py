"""TRL's trainers on a stack, given to them as any other ``peft_config``."""

import math

import pytest
import torch
from callback_runs import losses
from conftest import assert_close
from datasets import Dataset
from folders import ROWS, llama_folder
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from stacks import logits, moved, training_stack
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorada
from lorada import build_method

pytestmark = pytest.mark.fp64

trl = pytest.importorskip("trl", reason="needs the train extra: pip install 'lorada[train]'")

SETTINGS = {
    "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_steps": 3,
    "logging_steps": 1, "report_to": [], "use_cpu": True, "bf16": False, "max_length": 32,
    "gradient_checkpointing": False, "disable_tqdm": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "llama"
    return str(llama_folder(path, initializer_range=0.2))


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The same without dropout, which TRL switches off in modules but not in Llama's attention."""
    path = tmp_path_factory.mktemp("models") / "llama"
    return str(llama_folder(path, initializer_range=0.2, attention_dropout=0.0))


def base(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def sft(folder, output, **changes):
    data = Dataset.from_list([{"prompt": r["prompt"], "completion": r["response"]} for r in ROWS])
    return trl.SFTTrainer(
        base(folder),
        trl.SFTConfig(output_dir=str(output), **{**SETTINGS, **changes}),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=training_stack(),
    )


def dpo(folder, output, model=None, **changes):
    rows = [
        {"prompt": r["prompt"], "chosen": r["response"], "rejected": " 99 of them"} for r in ROWS
    ]
    return trl.DPOTrainer(
        model or base(folder),
        args=trl.DPOConfig(output_dir=str(output), **{**SETTINGS, **changes}),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=None if model else training_stack(),
    )


TRAINERS = [pytest.param(sft, id="sft"), pytest.param(dpo, id="dpo")]


def saved(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.more
@pytest.mark.parametrize("build", TRAINERS)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(build, folder, tmp_path):
    whole = build(folder, tmp_path / "whole")
    start = {name: value.clone() for name, value in whole.model.named_parameters()}
    whole.train()
    whole.save_model(str(tmp_path / "a"))
    resumed = build(folder, tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    resumed.save_model(str(tmp_path / "b"))
    assert [h["step"] for h in resumed.state.log_history if "loss" in h] == [1, 2, 3, 4, 5, 6]
    expected, actual = saved(tmp_path / "a"), saved(tmp_path / "b")
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    for name, value in whole.model.named_parameters():  # all of the stack moved, and nothing else
        assert torch.equal(value, start[name]) is not value.requires_grad, name

    # Stock PEFT loads what was saved.
    batch = {"input_ids": torch.arange(5, 45).view(4, 10)}
    wanted = logits(whole.model.eval(), batch)
    assert not torch.allclose(wanted, logits(base(folder), batch), atol=1e-2)
    loaded = PeftModel.from_pretrained(base(folder), str(tmp_path / "a"))
    assert_close(logits(loaded, batch), wanted)
    alone = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "a"))
    assert_close(logits(alone, batch), wanted)


def log_probs(model, batch):
    """Of each completion of a DPO batch, by plain PyTorch."""
    out = logits(model, {key: batch[key] for key in ("input_ids", "attention_mask")})
    tokens = batch["input_ids"][:, 1:, None]
    each = out[:, :-1].log_softmax(-1).gather(2, tokens)[..., 0]
    return (each * batch["completion_mask"][:, 1:]).sum(1)


def reference_log_probs(trainer, batch):
    return torch.cat(trainer.compute_ref_log_probs(trainer.model, batch))


@pytest.mark.more
def test_the_reference_of_dpo_is_the_base_and_stays_it(calm, tmp_path):
    trainer = dpo(calm, tmp_path, save_strategy="no")
    batch = next(iter(trainer.get_train_dataloader()))
    expected = log_probs(base(calm), batch)
    assert (log_probs(trainer.model, batch) - expected).abs().max() > 1  # the policy is another
    before = reference_log_probs(trainer, batch)
    assert_close(before, expected)
    trainer.train()
    assert torch.equal(reference_log_probs(trainer, batch), before)


@pytest.mark.more
@pytest.mark.parametrize("part", [None, "ia3", "adalora"])
def test_the_reference_of_dpo_on_a_trained_stack_is_what_it_was(calm, tmp_path, part):
    config = training_stack()
    if part is not None:
        config = build_method(part, base(calm).config).config
    moved(base(calm), config).save_pretrained(tmp_path / "before")
    stack = PeftModel.from_pretrained(
        base(calm), tmp_path / "before", config=lorada.as_stack(tmp_path / "before"),
        is_trainable=True,
    )  # fmt: skip
    trainer = dpo(calm, tmp_path, model=stack, save_strategy="no")
    batch = next(iter(trainer.get_train_dataloader()))
    before = log_probs(trainer.model, batch)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(2))
    assert_close(reference_log_probs(trainer, batch), before)
    assert (log_probs(trainer.model, batch) - before).abs().max() > 0.1


@pytest.mark.more
def test_the_reference_of_grpo_on_a_trained_stack_is_what_it_was(calm, tmp_path):
    moved(base(calm), training_stack()).save_pretrained(tmp_path / "before")
    stack = PeftModel.from_pretrained(base(calm), tmp_path / "before", is_trainable=True)
    settings = {**SETTINGS, "max_steps": 2, "save_strategy": "no"}
    del settings["max_length"]
    trainer = trl.GRPOTrainer(
        stack,
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        args=trl.GRPOConfig(
            str(tmp_path), beta=0.1, num_generations=4, max_completion_length=6, **settings
        ),
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in ROWS]),
        processing_class=AutoTokenizer.from_pretrained(calm),
    )
    trainer.train()
    first, second = (line["kl"] for line in trainer.state.log_history if "kl" in line)
    assert first == pytest.approx(0.0, abs=1e-9)
    assert second > 1e-3
    assert sorted(trainer.model.peft_config) == ["default", "ref"]


# Packed rows.


@pytest.mark.more
def test_padding_free_batches_give_the_losses_of_padded_ones(calm, tmp_path):
    padded = sft(calm, tmp_path / "padded", save_strategy="no")
    padded.train()
    free = sft(calm, tmp_path / "free", save_strategy="no", padding_free=True, max_length=None)
    assert "attention_mask" not in next(iter(free.get_train_dataloader()))
    free.train()
    assert_close(torch.tensor(losses(free)), torch.tensor(losses(padded)))


@pytest.mark.more
def test_a_packed_row_gives_the_loss_of_its_samples_one_by_one(calm, tmp_path):
    trainer = sft(calm, tmp_path, save_strategy="no", packing=True, max_length=40, max_steps=4)
    batch = next(iter(trainer.get_train_dataloader()))
    starts = (batch["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    assert len(starts) > 4  # more samples than rows
    model, total, count = trainer.model, 0.0, 0
    with torch.no_grad():
        packed = trainer.compute_loss(model, dict(batch))
        for start, stop in zip(starts, [*starts[1:], None], strict=True):
            ids, labels = (batch[key][:, start:stop] for key in ("input_ids", "labels"))
            scored = int((labels[:, 1:] != -100).sum())
            total += model(input_ids=ids, labels=labels).loss * scored
            count += scored
    assert_close(packed, total / count)
    trainer.train()
    assert len(losses(trainer)) == 4


@pytest.mark.more
def test_gradient_checkpointing_which_trl_switches_on_changes_no_loss(folder, tmp_path):
    found = []
    for on in (False, True):
        trainer = sft(folder, tmp_path / f"{on}", save_strategy="no", gradient_checkpointing=on)
        trainer.train()
        assert trainer.model.is_gradient_checkpointing is on
        found.append(losses(trainer))
    assert found[0] == found[1]
