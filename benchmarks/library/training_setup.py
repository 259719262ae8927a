"""A model with all that a training step of it needs, made by lorada from the name of a method.

The benchmarks compare two such setups: that of lorada (``lorada_setup``) and a reference, which is
the same method without lorada (``reference_setup.py``) or with the paper's form of attention
(``map_checks.py``). Both start from the same weights and take the same steps.
"""

import copy
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

from lorada.data.files.read_rows import read_rows
from lorada.data.forms.row_forms import convert_rows
from lorada.data.tokenize import EncodeOptions, encode
from lorada.methods.build import Plan, build_method
from lorada.methods.callbacks.ist import ISTCallback
from lorada.methods.callbacks.owlore import OwLoreCallback
from lorada.methods.head_modules import select_trainable
from lorada.methods.lookup import method_named
from lorada.training.models.loading import load_model, load_tokenizer

Batch = dict[str, Tensor]
STEPS = 100  # length of the training whose first steps are measured
LEARNING_RATE, SEED = 3e-4, 42  # 42 is the seed that TrainingArguments has by default
MODEL, DATA = "smollm2-135m", "builtin:syllogisms_train.jsonl"  # what is measured by default


@dataclass
class TrainingSetup:
    """A model and how to take a training step of it.

    Attributes:
        model: ready to train.
        parameters: those that train, by a name that is the same in both setups of a comparison.
        update: does what follows the backward pass of a step, the optimizer's step above all.
        before_step: does what precedes the forward pass of a step.
        read_gradients: returns the gradients of ``parameters``, where they lie elsewhere than in
            the parameters themselves.
        plan: lorada's plan of the method, in lorada's own setup.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    update: Callable[[int], Any]
    before_step: Callable[[int], Any] = lambda step: None
    read_gradients: Callable[[], dict[str, Tensor | None]] | None = None
    plan: Plan | None = None

    def gradients(self) -> dict[str, Tensor | None]:
        """The gradients of the last backward pass."""
        if self.read_gradients is not None:
            return self.read_gradients()
        return {name: parameter.grad for name, parameter in self.parameters.items()}


def forward_backward(setup: TrainingSetup, batch: Batch, step: int) -> Tensor:
    """Run the first half of a step and return its loss."""
    setup.before_step(step)
    loss: Tensor = setup.model(**batch).loss
    loss.backward()
    return loss.detach()


def update(setup: TrainingSetup, step: int) -> None:
    """Run the second half of a step: update the parameters and drop the gradients."""
    setup.update(step)
    for parameter in setup.parameters.values():
        parameter.grad = None


def run_step(setup: TrainingSetup, batch: Batch, step: int) -> None:
    """Run a whole training step."""
    forward_backward(setup, batch, step)
    update(setup, step)


def bare_model(name: str) -> PreTrainedModel:
    """Load a model without an adapter; its cache is off, as the Trainer has it."""
    model, _ = load_model(name)
    model.config.use_cache = False
    return model


def benchmark_plan(name: str, model_config: Any) -> Plan:
    """Build a method with the settings that a short benchmark needs.

    Raises:
        ValueError: if this model has no form of the method.
    """
    settings: dict[str, dict[str, Any]] = {
        # The allocator prunes at each of the few steps, and not after an eighth of the training.
        "adalora": {"tinit": 0, "tfinal": 0, "deltaT": 1, "total_step": STEPS},
        # 38 as in the paper, where the matrices have room for it; those of the tests have not.
        "shira": {"r": max(1, min(38, model_config.hidden_size // 15))},
    }
    parts = {part: settings[part] for part in method_named(name).part_names if part in settings}
    plan = build_method(name, model_config, **parts)
    for callback in plan.callbacks:
        if isinstance(callback, ISTCallback):
            callback.every = 10 * STEPS  # the scoring is measured by itself
        if isinstance(callback, OwLoreCallback):  # its weights are measured once, before training
            callback.layers = owlore_layers(model_config)
            callback.weights = [1.0] * model_config.num_hidden_layers
    return plan


def owlore_layers(model_config: Any) -> int:
    """How many layers OwLore trains at a time."""
    return min(5, int(model_config.num_hidden_layers))


def lorada_setup(name: str, base: PreTrainedModel, batch: Batch) -> TrainingSetup:
    """Place a method on a model with lorada and call its callbacks as the Trainer does.

    Args:
        name: a method, or ``NAME+lmam``.
        base: the model, which is changed.
        batch: what a method that must see data before training gets to see.
    """
    plan = benchmark_plan(name, base.config)
    if plan.prepare is not None:
        plan = replace(plan, config=plan.prepare(base, [batch]))
    model: Any = base
    if plan.config is None:
        select_trainable(base, plan.trainable or "")
    else:
        model = get_peft_model(base, copy.deepcopy(plan.config))  # which placing changes
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, learning_rate=LEARNING_RATE, weight_decay=weight_decay(plan), seed=SEED,
            report_to=[], use_cpu=True,
        )  # fmt: skip
    parameters = trainable_parameters(model)
    optimizer = (
        plan.optimizer(model, args)
        if plan.optimizer is not None
        else AdamW(parameters.values(), lr=args.learning_rate, weight_decay=args.weight_decay)
    )
    state, control = TrainerState(max_steps=STEPS, num_train_epochs=1), TrainerControl()

    def call_callbacks(event: str) -> None:
        kwargs = {"model": model, "optimizer": optimizer, "train_dataloader": None}
        for callback in plan.callbacks:
            getattr(callback, event)(args, state, control, **kwargs)

    def before_step(step: int) -> None:
        state.global_step = step
        call_callbacks("on_step_begin")

    def update(step: int) -> None:
        call_callbacks("on_pre_optimizer_step")
        optimizer.step()
        call_callbacks("on_optimizer_step")

    call_callbacks("on_train_begin")
    return TrainingSetup(model, parameters, update, before_step, plan=plan)


def weight_decay(plan: Plan) -> float:
    """The weight decay of a method; 0 where it sets none."""
    return float(plan.arguments.get("weight_decay", 0.0))


def plain_name(name: str) -> str:
    """The name of a tensor without what PEFT and adapters add to it."""
    name = name.removeprefix("base_model.model.").replace(".default", "")
    return name.replace(".lora_", ".").replace(".base_layer", "")


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by plain name."""
    return {plain_name(n): p for n, p in model.named_parameters() if p.requires_grad}


def by_layer(parameters: dict[str, nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters of each layer of the model."""
    layers: dict[int, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        if name.startswith("model.layers."):
            layers.setdefault(int(name.split(".")[2]), []).append(parameter)
    return list(layers.values())


def add_noise(setup: TrainingSetup) -> None:
    """Move the parameters of an adapter off their start, whose zeros hide most gradients."""
    generator = torch.Generator().manual_seed(0)
    for parameter in setup.parameters.values():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(noise, alpha=0.02)


def copy_parameters(setup: TrainingSetup, source: TrainingSetup) -> TrainingSetup:
    """Give a setup the values of another's parameters of the same names."""
    for name, parameter in setup.parameters.items():
        parameter.data.copy_(source.parameters[name].detach())
    return setup


@functools.cache
def _tokens(model: str, data: str) -> list[int]:
    """All tokens of a file of rows, one row behind another."""
    data_rows, form = convert_rows(read_rows(data), data)
    every_token = EncodeOptions(10**6, loss_on="all")
    return [
        token
        for encoded in encode(data_rows, form, load_tokenizer(model), every_token)
        if encoded is not None
        for token in encoded.features["input_ids"]
    ]


def text_batch(model: str, data: str, rows: int, length: int, *, padded: bool = False) -> Batch:
    """Make a batch of text: each row is cut from the joined rows of a file.

    Args:
        model: whose tokenizer is used.
        data: a file of rows.
        rows: how many rows.
        length: tokens of a row.
        padded: whether row i of b ends i/2b of the length earlier, with pads on its right.

    Raises:
        ValueError: if the file has too few tokens.
    """
    ids = _tokens(model, data)
    if len(ids) < rows * length:
        raise ValueError(
            f"{data} has {len(ids)} tokens, and {rows} rows of {length} need {rows * length}: "
            "lower --batch or --length"
        )
    input_ids = torch.tensor(ids[: rows * length]).view(rows, length)
    mask = torch.ones_like(input_ids)
    if padded:
        for i in range(rows):
            mask[i, length - i * length // (2 * rows) :] = 0
        input_ids = torch.where(mask == 1, input_ids, load_tokenizer(model).pad_token_id)
    labels = torch.where(mask == 1, input_ids, -100)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
