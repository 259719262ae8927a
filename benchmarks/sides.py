"""A ``Side``: a model that can do training steps, from the package, from ``direct`` or by PEFT.

The package's side comes first; the others start from the same weights of the base and take over
its parameters.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import AdaLoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

from lorada import LoradaConfig, SoraConfig
from lorada.methods.build import Plan, build_method
from lorada.methods.callbacks.adalora import AdaLoraCallback
from lorada.methods.callbacks.ist import ISTCallback
from lorada.methods.callbacks.owlore import OwLoreCallback
from lorada.methods.callbacks.sora import SoraCallback
from lorada.methods.task_head import select_trainable
from lorada.runs.models.loading import load_model

Batch = dict[str, Tensor]
STEPS = 100  # of the training that the timed steps are the first of
RATE, SEED = 3e-4, 42  # TrainingArguments' own seed
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class Side:
    """A model and how it does a training step.

    Attributes:
        model: ready to train.
        parameters: what trains, by a name that both sides have.
        before: what happens in front of step t.
        update: the optimizer's step t, with all that belongs to it.
        gradients: those of ``parameters``.
        callbacks: of the package's side.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    update: Callable[[int], Any]
    before: Callable[[int], Any] = lambda t: None
    gradients: Callable[[], dict[str, Tensor | None]] | None = None
    callbacks: tuple[Any, ...] = ()

    def found(self) -> dict[str, Tensor | None]:
        """The gradients of the last step."""
        if self.gradients is not None:
            return self.gradients()
        return {name: parameter.grad for name, parameter in self.parameters.items()}


def forward_backward(side: Side, batch: Batch, t: int) -> Tensor:
    """The first half of step t; its loss."""
    side.before(t)
    loss: Tensor = side.model(**batch).loss
    loss.backward()
    return loss.detach()


def finish(side: Side, t: int) -> None:
    """The second half: the update, after which gradients are gone."""
    side.update(t)
    for parameter in side.parameters.values():
        parameter.grad = None


# The package's side.


def plan_of(name: str, config: Any) -> Plan:
    """The plan of a method, also of the two that the paper has on encoders only."""
    if name == "adalora":
        part = AdaLoraConfig(
            init_r=12, target_r=8, lora_alpha=16, beta1=0.85, beta2=0.85, orth_reg_weight=0.1,
            total_step=STEPS, target_modules=LINEARS,
        )  # fmt: skip
        return Plan(LoradaConfig(parts=[part], task_type="CAUSAL_LM"), (AdaLoraCallback(),))
    if name == "sora":
        part = SoraConfig(rank=8, alpha=16, target_modules=LINEARS)
        stack = LoradaConfig(parts=[part], task_type="CAUSAL_LM")
        return Plan(stack, (SoraCallback(),), arguments={"weight_decay": 0.1})
    # 38 where a weight has room for so many; the tests' models are narrower.
    small = {"r": max(1, min(38, config.hidden_size // 15))} if name == "shira" else {}
    plan = build_method(name, config, **small)
    for callback in plan.callbacks:
        if isinstance(callback, ISTCallback):
            callback.every = 10 * STEPS  # its scoring is timed apart
        if isinstance(callback, OwLoreCallback):  # the weights are measured once, before training
            callback.layers = owlore_layers(config)
            callback.weights = [1.0] * config.num_hidden_layers
    return plan


def owlore_layers(config: Any) -> int:
    """How many layers OwLore trains at a time."""
    return min(5, config.num_hidden_layers)


def ours(name: str, base: PreTrainedModel, batch: Batch) -> Side:
    """A method as ``build_method`` makes it, its callbacks called as the Trainer calls them."""
    plan = plan_of(name, base.config)
    if plan.prepare is not None:
        plan = replace(plan, config=plan.prepare(base, [batch]))
    model: Any = base
    if plan.config is None:
        select_trainable(base, plan.trainable or "")
    else:
        model = get_peft_model(base, plan.config)
    decay = plan.arguments.get("weight_decay", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, learning_rate=RATE, weight_decay=decay, seed=SEED, report_to=[], use_cpu=True
        )
    parameters = trained(model)
    optimizer = (
        plan.optimizer(model, args)
        if plan.optimizer is not None
        else AdamW(parameters.values(), lr=args.learning_rate, weight_decay=args.weight_decay)
    )
    state, control = TrainerState(max_steps=STEPS, num_train_epochs=1), TrainerControl()

    def call(event: str) -> None:
        kwargs = {"model": model, "optimizer": optimizer, "train_dataloader": None}
        for callback in plan.callbacks:
            getattr(callback, event)(args, state, control, **kwargs)

    def before(t: int) -> None:
        state.global_step = t
        call("on_step_begin")

    def update(t: int) -> None:
        call("on_pre_optimizer_step")
        optimizer.step()
        call("on_optimizer_step")

    call("on_train_begin")
    return Side(model, parameters, update, before, callbacks=plan.callbacks)


def plain_name(name: str) -> str:
    """The name of a tensor without what PEFT and adapters put into it."""
    name = name.removeprefix("base_model.model.").replace(".default", "")
    return name.replace(".lora_", ".").replace(".base_layer", "")


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by plain name."""
    return {plain_name(n): p for n, p in model.named_parameters() if p.requires_grad}


def randomise(side: Side) -> None:
    """Move an adapter off its start, where zeros would hide most of its gradients."""
    generator = torch.Generator().manual_seed(0)
    for parameter in side.parameters.values():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(noise, alpha=0.02)


def bare_base(name: str) -> PreTrainedModel:
    """A fresh base model, without the cache that its config asks for, as the Trainer has it."""
    base, _ = load_model(name)
    base.config.use_cache = False
    return base


def take_over(side: Side, mine: Side) -> Side:
    """A side with the values of another's parameters of the same names."""
    for name, parameter in side.parameters.items():
        parameter.data.copy_(mine.parameters[name].detach())
    return side


# The other side: its form on the base, then the optimizer.


def own_tensors(mine: Side, base: PreTrainedModel) -> dict[str, Any]:
    """Copies of all tensors of an adapter, those that train and those that do not."""
    known = {name for name, _ in [*base.named_parameters(), *base.named_buffers()]}
    found: dict[str, Any] = {}
    for name, tensor in [*mine.model.named_parameters(), *mine.model.named_buffers()]:
        if plain_name(name) in known:
            continue
        copy = tensor.detach().clone()
        found[plain_name(name)] = (
            nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
        )
    return found


def adamw(model: nn.Module, parameters: dict[str, nn.Parameter]) -> Side:
    """A side whose steps are AdamW's."""
    optimizer = AdamW(parameters.values(), lr=RATE, weight_decay=0.0)
    return Side(model, parameters, lambda t: optimizer.step())


def written(mine: Side, base: PreTrainedModel, *forms: Callable[..., None]) -> Side:
    """Forms of ``direct`` on the bare base."""
    tensors = own_tensors(mine, base)
    base.requires_grad_(False)
    for form in forms:
        form(base, tensors)
    return adamw(base, {n: t for n, t in tensors.items() if t.requires_grad})


def by_peft(
    mine: Side, base: PreTrainedModel, config: PeftConfig | None = None, *forms: Callable[..., None]
) -> Side:
    """A config of PEFT's, by default the one part of the other side's stack, then further forms."""
    tensors = own_tensors(mine, base)
    if config is None:
        config = part_of(mine)
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(base, config)
    parameters = take_over(adamw(model, trained(model)), mine).parameters
    for form in forms:
        form(base, tensors)
    if forms:
        parameters |= {n: tensors[n] for n in mine.parameters if n not in parameters}
    return adamw(model, parameters)


def part_of(mine: Side, kind: type[PeftConfig] = PeftConfig) -> Any:
    """The part of a kind of the other side's stack."""
    model: Any = mine.model
    parts = model.peft_config["default"].parts
    return copy.deepcopy(next(part for part in parts if isinstance(part, kind)))


def layers_among(parameters: dict[str, nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters of each layer."""
    layers: dict[int, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        if name.startswith("model.layers."):
            layers.setdefault(int(name.split(".")[2]), []).append(parameter)
    return list(layers.values())
