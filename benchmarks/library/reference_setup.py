"""The reference of a method: the same method without lorada, with the same parameters.

A reference is put together from the parts and callbacks that the method has in METHODS, so that a
new method of existing parts gets one without an entry here:

- a part that is a config of PEFT's own is placed by PEFT;
- prefix tuning is compared to PEFT's prefix tuning;
- any other part is written into the ``forward`` of the model's modules (``reference_parts.py``);
- a callback is replaced by what it does to a training step (``reference_procedures.py``).

A method with anything else has no reference, and its steps are timed alone.
"""

import copy
import re
from dataclasses import replace
from typing import Any

import torch
from library.reference_parts import follows_settings, handwritten_part
from library.reference_procedures import PROCEDURES
from library.training_setup import (
    LEARNING_RATE,
    Batch,
    TrainingSetup,
    copy_parameters,
    plain_name,
    trainable_parameters,
    weight_decay,
)
from peft import PeftConfig, PrefixTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel

from lorada import PrefixConfig
from lorada.methods.build import Plan
from lorada.methods.callbacks.adalora_pruning import AdaLoraCallback
from lorada.methods.callbacks.longlora import ShiftedAttention
from lorada.methods.callbacks.owlore import OwLoreCallback
from lorada.methods.galore import galore


def describe_reference(plan: Plan) -> str | None:
    """Say in words what the reference of a method is; None if it has none."""
    if plan.rate_ratio is not None:
        return None  # PEFT's optimizer for it gives other parameters the rate of B too
    parts = parts_of(plan)
    words: list[str] = []
    changed: list[str] = []  # kinds of modules; two parts cannot both be written into one kind
    for part in parts:
        form = handwritten_part(part)
        if _is_of_peft(part):
            words.append(f"PEFT's {type(part).__name__}")
            changed.append("linear")
        elif isinstance(part, PrefixConfig) and len(parts) == 1 and part.projection is None:
            words.append("PEFT's prefix tuning")
        elif form is not None and follows_settings(form, part):
            words.append(form.words)
            changed.append(form.changes)
        else:
            return None
    if any(type(callback) not in PROCEDURES for callback in plan.callbacks):
        return None
    words += [PROCEDURES[type(callback)][0] for callback in plan.callbacks]
    if needs_training_mode(plan):
        changed.append("attention")
        if any(getattr(part, "lora_dropout", 0.0) for part in parts):
            return None  # dropout is drawn in another order
    if plan.optimizer is not None:
        if plan.optimizer is not galore or not _has(plan, OwLoreCallback):
            return None
        words.append("a GaLore loop")
    if len(changed) > len(set(changed)):
        return None
    return ", ".join(words) or "the model as it is"


def needs_training_mode(plan: Plan) -> bool:
    """Whether the method is another one in evaluation mode.

    Shifted attention is, and so is AdaLoRA, whose regulariser lorada adds in training only.
    """
    return _has(plan, ShiftedAttention) or _has(plan, AdaLoraCallback)


def reference_setup(ours: TrainingSetup, base: PreTrainedModel, batch: Batch) -> TrainingSetup:
    """Make the reference of a method, with the parameters that lorada's setup has now.

    Args:
        ours: lorada's setup of a method that ``describe_reference`` has words for.
        base: a model with the weights that lorada's had before; it is changed.
        batch: what a method that must see data before training gets to see.
    """
    plan = ours.plan
    assert plan is not None
    if plan.prepare is not None:
        plan = replace(plan, config=plan.prepare(base, [batch]))
    parts = parts_of(plan)
    if not parts:
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(bool(re.search(plan.trainable or "", name)))
        setup = adamw_setup(base, trainable_parameters(base), weight_decay(plan))
    elif isinstance(parts[0], PrefixConfig):
        setup = _peft_prefix_setup(ours, base, parts[0].length)
    else:
        setup = _setup_of_parts(parts, ours, base, weight_decay(plan))
    for callback in plan.callbacks:
        setup = PROCEDURES[type(callback)][1](setup, ours)
    return setup


def _setup_of_parts(
    parts: list[Any], ours: TrainingSetup, base: PreTrainedModel, decay: float
) -> TrainingSetup:
    """Place PEFT's own part with PEFT, then write the other parts by hand."""
    tensors = _adapter_tensors(ours, base)
    base.requires_grad_(False)
    model: nn.Module = base
    parameters: dict[str, nn.Parameter] = {}
    for part in filter(_is_of_peft, parts):
        placed = peft_setup(ours, base, part)
        model, parameters = placed.model, placed.parameters
    for part in parts:
        if (form := handwritten_part(part)) is not None:
            form.write(base, tensors, part)
    parameters |= {n: t for n, t in tensors.items() if t.requires_grad and n not in parameters}
    return adamw_setup(model, parameters, decay)


def adamw_setup(
    model: nn.Module, parameters: dict[str, nn.Parameter], decay: float = 0.0
) -> TrainingSetup:
    """A setup whose updates are steps of AdamW."""
    optimizer = AdamW(parameters.values(), lr=LEARNING_RATE, weight_decay=decay)
    return TrainingSetup(model, parameters, lambda step: optimizer.step())


def peft_setup(ours: TrainingSetup, base: PreTrainedModel, config: PeftConfig) -> TrainingSetup:
    """Place a config with PEFT alone, and copy the parameters of the same names."""
    config = copy.deepcopy(config)
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(base, config)
    return copy_parameters(adamw_setup(model, trainable_parameters(model)), ours)


def _peft_prefix_setup(ours: TrainingSetup, base: PreTrainedModel, length: int) -> TrainingSetup:
    """PEFT's prefix tuning, whose one parameter holds the keys and values of all layers.

    PEFT moves the tokens ``length`` positions on and leaves its keys where they are, so its keys
    are those of lorada, rotated by as many positions.
    """
    config = base.config
    model = get_peft_model(
        base, PrefixTuningConfig(num_virtual_tokens=length, task_type="CAUSAL_LM")
    )
    weight = next(p for p in model.parameters() if p.requires_grad)
    groups, width = config.num_key_value_heads, weight[0].numel() // config.num_hidden_layers // 2
    cos, sin = base.model.rotary_emb(weight, torch.tensor([[length]]))
    names = [n for n in ours.parameters if n.endswith(".key")]

    def rotated(keys: Tensor, sign: int) -> Tensor:
        heads = keys.view(length, groups, -1)
        left, right = heads.chunk(2, -1)
        return (heads * cos[0] + sign * torch.cat([-right, left], -1) * sin[0]).reshape_as(keys)

    blocks = weight.data.view(length, -1, 2, width)
    for index, name in enumerate(names):
        blocks[:, index, 0] = rotated(ours.parameters[name].detach(), 1)
        blocks[:, index, 1] = ours.parameters[name[:-3] + "value"].detach()

    def gradients() -> dict[str, Tensor | None]:
        assert weight.grad is not None
        found: dict[str, Tensor | None] = {}
        for index, name in enumerate(names):
            key, value = weight.grad.view(length, -1, 2, width)[:, index].unbind(1)
            found |= {name: rotated(key.contiguous(), -1), name[:-3] + "value": value}
        return found

    return replace(adamw_setup(model, {"embedding": weight}), read_gradients=gradients)


def _adapter_tensors(ours: TrainingSetup, base: PreTrainedModel) -> dict[str, Any]:
    """Copies of all tensors of an adapter by plain name, those that train and those that do not."""
    known = {name for name, _ in [*base.named_parameters(), *base.named_buffers()]}
    found: dict[str, Any] = {}
    for name, tensor in [*ours.model.named_parameters(), *ours.model.named_buffers()]:
        if plain_name(name) in known:
            continue
        own = tensor.detach().clone()
        found[plain_name(name)] = (
            nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own
        )
    return found


def parts_of(plan: Plan) -> list[Any]:
    """The configs of a method's parts."""
    stack: Any = plan.config
    return [] if stack is None else list(stack.parts)


def _has(plan: Plan, callback: type) -> bool:
    return any(type(one) is callback for one in plan.callbacks)


def _is_of_peft(part: PeftConfig) -> bool:
    return type(part).__module__.startswith("peft.")
