"""Tiny runs of the plain Trainer, for tests of callbacks."""

from pathlib import Path

import torch
from conftest import TINY
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed


def rows() -> list[dict[str, Tensor]]:
    """Sequences that count upwards, so that the next token can be learned."""
    ids = [torch.arange(start, start + 8) for start in [*range(5, 13)] * 2]
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(
    config: PeftConfig,
    output: Path,
    *callbacks: TrainerCallback,
    held_out: list | None = None,
    **arguments,
) -> Trainer:
    """A run of 12 steps over a tiny model, the same at every call."""
    set_seed(0)
    model = get_peft_model(TINY["llama"](), config)
    settings = {
        "output_dir": str(output), "max_steps": 12, "per_device_train_batch_size": 4,
        "learning_rate": 1e-2, "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "logging_steps": 1, "disable_tqdm": True, "seed": 0,
    }  # fmt: skip
    return Trainer(
        model=model,
        args=TrainingArguments(**{**settings, **arguments}),
        train_dataset=rows(),
        eval_dataset=held_out,
        callbacks=list(callbacks),
    )


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def assert_same_weights(actual: PeftModel, expected: PeftModel) -> None:
    """The weights of two adapters are equal to the last bit."""
    left, right = actual.state_dict(), expected.state_dict()
    assert left.keys() == right.keys()
    for key in [key for key in left if "lora_" in key]:
        assert torch.equal(left[key], right[key]), key
