"""Tiny runs of the plain Trainer, for tests of callbacks."""

import gc
from pathlib import Path

import torch
from conftest import TINY
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from trained_runs import assert_same
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

# A Trainer collects garbage when it starts; half a second each time with all that is imported.
gc.freeze()


def trainer_of(
    model: nn.Module, output: Path, rows: list, *callbacks, held_out=None, **arguments
) -> Trainer:
    """A Trainer of batches of 4 rows that saves no checkpoint unless it is told to."""
    settings = {
        "max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
        "save_strategy": "no", "report_to": "none", "use_cpu": True, "logging_steps": 1,
        "disable_tqdm": True,
    }  # fmt: skip
    args = TrainingArguments(str(output), **settings | arguments)
    return Trainer(
        model, args, train_dataset=rows, eval_dataset=held_out, callbacks=list(callbacks)
    )


def rows() -> list[dict[str, Tensor]]:
    """Sequences that count upwards, so that the next token can be learned."""
    ids = [torch.arange(start, start + 8) for start in [*range(5, 13)] * 2]
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(config: PeftConfig, output: Path, *callbacks: TrainerCallback, **arguments) -> Trainer:
    """A run of 12 steps over a tiny model, the same at every call."""
    set_seed(0)
    model = get_peft_model(TINY["llama"](), config)
    return trainer_of(model, output, rows(), *callbacks, **{"seed": 0, **arguments})


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def assert_same_weights(actual: PeftModel, expected: PeftModel) -> None:
    """The weights of two adapters are equal to the last bit."""
    assert_same(get_peft_model_state_dict(actual), get_peft_model_state_dict(expected))


# Of callbacks that train some layers at a time: the model's layers, and rows in which every token
# is followed by the next of 20.
LAYERS = 4
ROWS = [
    {"input_ids": ids, "labels": ids, "attention_mask": torch.ones(12, dtype=torch.long)}
    for ids in (3 + (torch.arange(12) + start) % 20 for start in range(32))
]


def trainer_for(model, output, *callbacks, optimizer=None, **settings) -> Trainer:
    """Six steps on these rows, at a constant rate."""
    defaults = {"max_steps": 6, "lr_scheduler_type": "constant"}
    run = trainer_of(model, output, ROWS, *callbacks, **defaults | settings)
    run.optimizer = optimizer(model, run.args) if optimizer else None
    return run


def watched(model, output, callback, resume=None, **settings) -> tuple["Watch", Trainer]:
    """Train with a watch; resume from a checkpoint where there is one."""
    watch = Watch()
    run = trainer_for(model, output, callback, watch, **settings)
    run.train(resume_from_checkpoint=resume)
    return watch, run


def layer_of(name) -> int | None:
    """The number of the layer that a parameter is in."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


class Watch(TrainerCallback):
    """Notes after each step what had gradients, what moved, and what the optimizer remembers.

    Attributes:
        gradients: by step, the names of parameters with a gradient.
        moved: by step, the names of parameters whose bits changed.
        remembered: by step, the names of parameters with a state in the optimizer.
    """

    def __init__(self):
        self.gradients, self.moved, self.remembered = [], [], []

    def on_step_begin(self, args, state, control, **kwargs):
        named = kwargs["model"].named_parameters()
        self.before = {name: p.detach().clone() for name, p in named}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        named = kwargs["model"].named_parameters()
        self.gradients.append({name for name, p in named if p.grad is not None})

    def on_optimizer_step(self, args, state, control, **kwargs):
        named = dict(kwargs["model"].named_parameters())
        moved = {name for name, p in named.items() if not torch.equal(p, self.before[name])}
        self.moved.append(moved)
        known = kwargs["optimizer"].state
        self.remembered.append({name for name, p in named.items() if known.get(p)})
