"""TRL's packed rows: a sample's loss does not depend on what shares its row."""

import pytest
import torch
from conftest import assert_close
from datasets import Dataset
from folders import ROWS, llama_folder
from stacks import training_stack
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.fp64

trl = pytest.importorskip("trl", reason="needs the train extra: pip install 'lorada[train]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "llama"
    return str(llama_folder(path, initializer_range=0.2, attention_dropout=0.0))


def sft(folder, output, **changes):
    data = Dataset.from_list([{"prompt": r["prompt"], "completion": r["response"]} for r in ROWS])
    settings = {
        "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": [],
        "save_strategy": "no", "logging_steps": 1, "use_cpu": True, "bf16": False,
        "max_length": 40, "disable_tqdm": True, "gradient_checkpointing": False,
    }  # fmt: skip
    return trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        trl.SFTConfig(output_dir=str(output), **{**settings, **changes}),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=training_stack(),
    )


def losses(trainer):
    return torch.tensor([h["loss"] for h in trainer.state.log_history if "loss" in h])


def test_padding_free_batches_give_the_losses_of_padded_ones(folder, tmp_path):
    padded = sft(folder, tmp_path / "padded")
    padded.train()
    free = sft(folder, tmp_path / "free", padding_free=True, max_length=None)
    assert "attention_mask" not in next(iter(free.get_train_dataloader()))
    free.train()
    assert_close(losses(free), losses(padded))


def test_a_packed_row_gives_the_loss_of_its_samples_one_by_one(folder, tmp_path):
    trainer = sft(folder, tmp_path, packing=True)
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
