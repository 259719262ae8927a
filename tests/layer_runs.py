"""A stock Trainer on a tiny decoder, for tests of callbacks that train some layers at a time."""

import gc

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

# A Trainer collects garbage when it starts; half a second each time with all that is imported.
gc.freeze()

LAYERS = 4
# Every token is followed by the next of 20.
ROWS = [
    {"input_ids": ids, "labels": ids, "attention_mask": torch.ones(12, dtype=torch.long)}
    for ids in (3 + (torch.arange(12) + start) % 20 for start in range(32))
]


def trainer_for(model, output, callback, steps=6, optimizer=None, **settings) -> Trainer:
    """A Trainer of batches of 4 rows that saves no checkpoint unless it is told to."""
    defaults = {
        "per_device_train_batch_size": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
        "save_strategy": "no", "logging_steps": 1, "report_to": [], "disable_tqdm": True,
    }  # fmt: skip
    args = TrainingArguments(str(output), max_steps=steps, use_cpu=True, **defaults | settings)
    return Trainer(
        model,
        args,
        train_dataset=ROWS,
        callbacks=[callback],
        optimizers=(optimizer(model, args) if optimizer else None, None),
    )


def watched(model, output, callback, resume=None, **settings) -> tuple["Watch", Trainer]:
    """Train with a watch; resume from a checkpoint where there is one."""
    trainer, watch = trainer_for(model, output, callback, **settings), Watch()
    trainer.add_callback(watch)
    trainer.train(resume_from_checkpoint=resume)
    return watch, trainer


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
