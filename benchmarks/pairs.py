"""Each method twice: as the package places it, and written directly or by PEFT's own class.

A ``Side`` is a model that can do training steps. ``PAIRS`` says which two sides a row of the table
in docs/costs.md compares; both start from the same weights of the base, and the second takes over
the first one's parameters.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import direct
import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, PrefixTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

from lorada import LoradaConfig, SoraConfig
from lorada.plan import Plan, build_method, select_trainable
from lorada.procedures.adalora import AdaLoraCallback
from lorada.procedures.ist import ISTCallback
from lorada.procedures.owlore import OwLoreCallback
from lorada.procedures.shira import snip
from lorada.procedures.sora import SoraCallback
from lorada.tuners.gates import default_dims

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
    state, control = TrainerState(max_steps=STEPS), TrainerControl()

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
    parameters = trained(model)
    for name, parameter in parameters.items():
        parameter.data.copy_(mine.parameters[name].detach())
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


# Those whose other side has something of its own.


def peft_shira(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    """PEFT's SHiRA with the entries that SNIP chooses of this base, the same ones."""
    part: Any = part_of(mine)
    return by_peft(mine, base, snip(base, [batch], config=part))


def peft_adalora(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    """PEFT's AdaLoRA, whose allocator each step calls."""
    side = by_peft(mine, base)
    tuner: Any = side.model.base_model
    step = side.update

    def update(t: int) -> None:
        step(t)
        tuner.update_and_allocate(t + 1)

    return replace(side, update=update)


def peft_prefix(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    """PEFT's prefix, which moves the tokens l positions on and leaves its keys where they are.

    So its keys are ours turned by l positions.
    """
    config, length = base.config, part_of(mine).length
    model = get_peft_model(
        base, PrefixTuningConfig(num_virtual_tokens=length, task_type="CAUSAL_LM")
    )
    weight = next(p for p in model.parameters() if p.requires_grad)
    groups, width = config.num_key_value_heads, weight[0].numel() // config.num_hidden_layers // 2
    cos, sin = base.model.rotary_emb(weight, torch.tensor([[length]]))
    names = [n for n in mine.parameters if n.endswith(".key")]

    def turned(keys: Tensor, sign: int) -> Tensor:
        heads = keys.view(length, groups, -1)
        left, right = heads.chunk(2, -1)
        return (heads * cos[0] + sign * torch.cat([-right, left], -1) * sin[0]).reshape_as(keys)

    blocks = weight.data.view(length, -1, 2, width)
    for index, name in enumerate(names):
        blocks[:, index, 0] = turned(mine.parameters[name].detach(), 1)
        blocks[:, index, 1] = mine.parameters[name[:-3] + "value"].detach()

    def gradients() -> dict[str, Tensor | None]:
        assert weight.grad is not None
        found: dict[str, Tensor | None] = {}
        for index, name in enumerate(names):
            key, value = weight.grad.view(length, -1, 2, width)[:, index].unbind(1)
            found |= {name: turned(key.contiguous(), -1), name[:-3] + "value": value}
        return found

    return replace(adamw(model, {"embedding": weight}), gradients=gradients)


def direct_sora(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    """SoRA with a parameter group that does not decay for its gates."""
    side = written(mine, base, partial(direct.sora, alpha=part_of(mine).alpha))
    gates = [p for n, p in side.parameters.items() if n.endswith(".gate")]
    others = [p for n, p in side.parameters.items() if not n.endswith(".gate")]
    optimizer = AdamW([{"params": others, "weight_decay": 0.1}, {"params": gates}], RATE,
                      weight_decay=0.0)  # fmt: skip

    def update(t: int) -> None:
        optimizer.step()
        direct.soft_threshold(gates, 3e-4)

    return replace(side, update=update)


def direct_lamda(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    """LaMDA, of whose B the first columns stay as they are."""
    side = written(mine, base, direct.lamda)
    matrices = [p for n, p in side.parameters.items() if n.endswith(".B")]
    step = side.update
    return replace(
        side,
        update=lambda t: direct.freeze_columns(
            matrices, min(1.0, t / (0.3 * STEPS)), lambda: step(t)
        ),
    )


def direct_ist(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    """PEFT's LoRA, a quarter of whose layers is drawn for each step."""
    side = by_peft(mine, base)
    layers = layers_among(side.parameters)
    count = max(1, len(layers) // 4)

    def before(t: int) -> None:
        direct.some_layers(layers, count, SEED * 1_000_003 + t)

    return replace(side, before=before)


def layers_among(parameters: dict[str, nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters of each layer."""
    layers: dict[int, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        if name.startswith("model.layers."):
            layers.setdefault(int(name.split(".")[2]), []).append(parameter)
    return list(layers.values())


def direct_full(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    """Every parameter."""
    return adamw(base, trained(base.requires_grad_(True)))


def direct_owlore(mine: Side, base: PreTrainedModel, batch: Batch, rank: int | None = None) -> Side:
    """A few layers drawn before the first step; with a rank, GaLore for their matrices."""
    parameters = trained(base.requires_grad_(True))
    layers = layers_among(parameters)
    direct.some_layers(layers, owlore_layers(base.config), SEED * 1_000_003)
    matrices = [p for layer in layers for p in layer if p.dim() == 2] if rank else []
    projected = set(matrices)
    rest = [p for p in parameters.values() if p not in projected]
    optimizer, state = AdamW(rest, lr=RATE, weight_decay=0.0), {}

    def update(t: int) -> None:
        optimizer.step()
        direct.galore_step(matrices, state, lr=RATE, rank=rank or 0, step=t + 1)

    return Side(base, parameters, update)


def peft_lora(base: PreTrainedModel) -> Side:
    """LoRA of the method ``lora`` by PEFT alone, as it starts."""
    config: Any = plan_of("lora", base.config).config
    torch.manual_seed(0)
    model = get_peft_model(base, config.parts[0])
    return adamw(model, trained(model))


# The rows of the table.

Other = Callable[[Side, PreTrainedModel, Batch], Side]


@dataclass(frozen=True)
class Pair:
    """One row.

    Attributes:
        method: a name of METHODS, or one of the two that ``plan_of`` knows beside them.
        against: what the other side is, in words.
        other: makes the other side.
        padded: whether the rows of the batch have different lengths.
        starts: whether the adapter stays at its start; else it is moved off it.
        trains: whether the comparison needs training mode, for methods without dropout.
        same: whether both sides must have the same parameters; else the other side has a part.
    """

    method: str
    against: str
    other: Other
    padded: bool = False
    starts: bool = False
    trains: bool = False
    same: bool = True


def _written(*forms: Callable[..., None]) -> Other:
    return lambda mine, base, batch: written(mine, base, *forms)


def _peft(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    return by_peft(mine, base)


def _quanta(base: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
    direct.quanta(base, tensors, default_dims(base.config.hidden_size))


def _peft_lora_of(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    return by_peft(mine, base, part_of(mine, LoraConfig))


def _with_lora(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    adapter = partial(direct.adapter_ffn, scale=4.0, dropout=0.05)
    return by_peft(mine, base, part_of(mine, LoraConfig), direct.lmam, adapter)


def _longlora(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    return by_peft(mine, base, None, lambda base, tensors: direct.shifted_attention(base))


def _omoe(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    part = part_of(mine)
    scale = part.alpha / part.rank
    return written(mine, base, partial(direct.omoe, scale=scale, dropout=part.dropout))


_ADAPTER = partial(direct.adapter_ffn, scale=4.0)
PAIRS: dict[str, Pair] = {
    "noise": Pair("lora", "the same, to see the noise", lambda mine, base, batch: ours("lora", base, batch), starts=True),
    "lmam": Pair("lmam", "the map in the attention's forward", _written(direct.lmam)),
    "lmam, padded": Pair("lmam", "the same", _written(direct.lmam), padded=True),
    "fmam": Pair("fmam", "the map in the attention's forward", _written(direct.lmam)),
    "lora": Pair("lora", "PEFT's LoRA", _peft),
    "lora+lmam": Pair("lora+lmam", "PEFT's LoRA without a map", _peft_lora_of, starts=True, same=False),
    "dora": Pair("dora", "PEFT's DoRA", _peft),
    "adalora": Pair("adalora", "PEFT's AdaLoRA with its allocator", peft_adalora),
    "shira": Pair("shira", "PEFT's SHiRA", peft_shira),
    "prefix": Pair("prefix", "PEFT's prefix tuning", peft_prefix),
    "adapter_ffn": Pair("adapter_ffn", "the layer's forward", _written(_ADAPTER)),
    "series": Pair("series", "the linear's forward", _written(direct.series)),
    "parallel": Pair("parallel", "the linears' forward", _written(direct.parallel)),
    "quanta": Pair("quanta", "movedim and matmul", _written(_quanta)),
    "sora": Pair("sora", "the linears' forward, thresholds", direct_sora),
    "lamda": Pair("lamda", "W_res and three linears, frozen columns", direct_lamda),
    "omoe": Pair("omoe", "a loop over experts", _omoe),
    "longlora": Pair("longlora", "PEFT's LoRA, block mask", _longlora, trains=True),
    "ist": Pair("ist", "PEFT's LoRA, requires_grad flips", direct_ist),
    "owlore": Pair("owlore", "requires_grad flips, GaLore loop", partial(direct_owlore, rank=256), starts=True),
    "owlore_full": Pair("owlore_full", "requires_grad flips, AdamW", direct_owlore, starts=True),
    "full": Pair("full", "the model as it is", direct_full, starts=True),
    "lorada_a": Pair("lorada_a", "map and adapter in forwards", _written(direct.lmam, _ADAPTER)),
    "lorada_la": Pair("lorada_la", "PEFT's LoRA, map and adapter in forwards", _with_lora),
    "lorada_la, padded": Pair("lorada_la", "the same", _with_lora, padded=True),
    "lorada_q": Pair("lorada_q", "map in the forward, movedim and matmul", _written(direct.lmam, _quanta)),
}
