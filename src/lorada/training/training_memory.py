"""Computes the memory of a training step, by part, without weights and without an accelerator.

One step of the recipe's model, method and optimizer runs on fake tensors, which have a shape, a
dtype and a lifetime, but no memory. The bytes that are alive are counted at every operation, as the
kernels of a CPU make them.
"""

import logging
import os
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from peft import ShiraConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorada.data.task import Kind
from lorada.methods.build import Plan
from lorada.methods.task_head import widen_trained
from lorada.runs.recipe import AUTO, Recipe
from lorada.support.processes import is_first
from lorada.training.arguments import (
    device_bytes,
    longest,
    may_not_fit,
    training_arguments,
    with_dtype,
)
from lorada.training.inputs import PreparedTraining
from lorada.training.models.labelled_loss import LabelledLoss
from lorada.training.models.loading import auto_class, kind_of, load_config, stretched
from lorada.training.parameter_counts import placed_on, plan_of

logger = logging.getLogger(__name__)

# Bits of a quantised weight. nf4 has a scale of 8 bits for 64 weights, which has one of 32 for 256;
# int8 has one of 32 for each row, which is not counted.
BITS = {"nf4": 4 + 8 / 64 + 32 / (64 * 256), "int8": 8.0}
FITS = 0.85  # share of an accelerator's memory that a computed step may take


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step needs at its peak."""

    weights: float  # of the base and of the trained parts, with buffers
    gradients: float
    optimizer: float  # its states, such as Adam's two moments
    activations: float  # all else, with logits and what operations need for a moment

    @property
    def total(self) -> float:
        """All parts together."""
        return self.weights + self.gradients + self.optimizer + self.activations


def recomputes(prepared: PreparedTraining) -> bool:
    """Whether a training computes its activations again; where ``auto`` does, a line says so."""
    asked, device = prepared.recipe.activation_checkpointing, device_bytes(prepared.recipe)
    if asked != AUTO or device is None:
        return asked == "full"
    if not may_not_fit(prepared.recipe, prepared.config):
        return False
    sizes, unknown = step_bytes(prepared, "off")
    if sizes is not None and sizes["off"] <= FITS * device:
        return False
    need = f"the memory of a step cannot be computed: {unknown}"
    if sizes is not None:
        each = (f"{size / 2**30:.1f} GiB" for size in (sizes["off"], device))
        need = "a step with off needs {} of this device's {}".format(*each)
    if is_first():
        logger.warning("activation_checkpointing=auto takes full: %s", need)
    return True


def refuse_impossible(recipe: Recipe, plan: Plan, counts: dict[str, Any]) -> None:
    """Refuse an adapter that is larger than its base and does not even fit in the memory here."""
    size, here = 4 * counts["trainable"], device_bytes(recipe)
    here = here or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if plan.config is not None and counts["trainable"] > counts["total"] and size > here:
        raise ValueError(
            f"{recipe.method} would train {counts['trainable']:,} parameters, which take "
            f"{size / 2**30:,.0f} GiB, and there are {here / 2**30:.0f} GiB here: lower its sizes, "
            "such as r"
        )


def step_bytes(prepared: PreparedTraining, *names: str) -> tuple[dict[str, float] | None, str]:
    """Bytes of a step by ``activation_checkpointing``; None, and why, if they are not known."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the method is placed again, and gives its warnings again
    try:
        return {name: memory_of(prepared, name).total for name in names}, ""
    except Exception as error:  # of any class: a model may do what fake tensors cannot
        return None, (str(error).strip() or type(error).__name__).splitlines()[0]
    finally:
        logging.disable(before)


def memory_of(prepared: PreparedTraining, activation_checkpointing: str) -> Memory:
    """The memory of a step of a training, in one process."""
    rows, changes = prepared.rows, {"activation_checkpointing": activation_checkpointing}
    most = max(len(row["candidates"]) for row in rows.rows) if rows.form == "choice" else 1
    return training_memory(prepared.recipe.model_copy(update=changes), most)


def training_memory(recipe: Recipe, candidates: int = 1) -> Memory:
    """The memory of one training step of a recipe, with every sequence as long as it may be.

    Of two steps the second is counted, as it has optimizer states. Each of a row's ``candidates``
    is a sequence.
    """
    config = load_config(recipe.model)
    recipe = with_dtype(recipe, config)
    recipe = recipe.model_copy(update={"max_length": longest(recipe, config)})
    plan, config = plan_of(recipe, config), stretched(config, recipe.rope_factor)
    for part in getattr(plan.config, "parts", []):
        if isinstance(part, ShiraConfig):
            raise NotImplementedError("SHiRA's sparse weights have no form on fake tensors")
    again = recipe.activation_checkpointing == "full"
    args = training_arguments(recipe, plan.arguments, quiet=True, again=again)
    half = torch.float16 if args.fp16 else torch.bfloat16
    narrow = torch.autocast("cpu", half, enabled=args.fp16 or args.bf16)
    kind = kind_of(config)
    auto = auto_class(kind, headed=kind == "encoder")
    with torch.device("meta"):
        base = auto.from_config(config, dtype=getattr(torch, recipe.base_dtype))
        model = placed_on(base, plan)
        if recipe.mixed:
            widen_trained(model)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)  # type: ignore[operator]
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        _make_fake(model)
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained)
        if plan.optimizer is not None:
            optimizer = plan.optimizer(model, args)
        inputs = _inputs(kind, args.per_device_train_batch_size * candidates, recipe)
        counter = _Alive(besides=[*model.parameters(), *model.buffers()])
        with counter:
            for _ in range(2):
                counter.peak = 0
                with narrow:
                    loss = _loss(model, inputs, config)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    weights = _bytes([*model.parameters(), *model.buffers()]) - _saved_by_quantising(recipe, model)
    gradients = _bytes(trained)
    states = _bytes([value for state in optimizer.state.values() for value in tree_leaves(state)])
    rest = counter.peak - states - gradients
    return Memory(weights, gradients, states, max(0, rest))


def _saved_by_quantising(recipe: Recipe, model: Any) -> float:
    """Bytes that the frozen linear layers do not need in 4 or 8 bits."""
    if recipe.quantization is None:
        return 0.0
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    output, bits = base.get_output_embeddings(), BITS[recipe.quantization]
    linear = (m for m in model.modules() if isinstance(m, nn.Linear) and m is not output)
    frozen = (m.weight for m in linear if not m.weight.requires_grad)
    return sum(weight.numel() * (weight.element_size() - bits / 8) for weight in frozen)


def _make_fake(model: nn.Module) -> None:
    """Replace the meta tensors of a model by fake ones; tied weights stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, dtype=weight.dtype)
                module._parameters[name] = made.setdefault(
                    id(weight), nn.Parameter(fake, requires_grad=weight.requires_grad)
                )
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)


def _inputs(kind: Kind, batch: int, recipe: Recipe) -> dict[str, Tensor]:
    """A batch of sequences of the greatest length, with labels.

    Several have one padded token, since models leave out a mask that hides nothing. One sequence
    has no pads, and no mask, unless rows are packed in it: each layer may keep a mask, of T × T.
    """
    ids = torch.zeros(batch, recipe.max_length, dtype=torch.long)
    inputs = {"input_ids": ids}
    if batch > 1 or recipe.packing:
        mask = torch.ones_like(ids)
        mask[0, 0] = 0
        inputs["attention_mask"] = mask
    length = recipe.max_target_length or recipe.max_length
    labels = {
        "encoder": torch.zeros(batch, dtype=torch.long),
        "encoder_decoder": torch.zeros(batch, length, dtype=torch.long),
        "decoder": ids,
    }
    return {**inputs, "labels": labels[kind]}


def _loss(model: nn.Module, inputs: dict[str, Tensor], config: Any) -> Tensor:
    """The loss as a run computes it: a decoder's without all logits, unless it adds a loss."""
    if kind_of(config) != "decoder" or getattr(config, "output_router_logits", False):
        loss: Tensor = model(**inputs).loss
        return loss
    labelled = LabelledLoss(model, plain=getattr(config, "final_logit_softcapping", None) is None)
    # All tokens have labels. Which ones have is not known without values.
    rows, places = inputs["labels"].shape[0], inputs["labels"].shape[1] - 1
    where = torch.arange(rows).repeat_interleave(places), torch.arange(places).repeat(rows)
    return labelled(model, inputs, where)[0].mean()


def _bytes(tensors: list[Any]) -> int:
    """Bytes of the storages of some tensors, each storage once."""
    storages = [tensor.untyped_storage() for tensor in tensors if isinstance(tensor, Tensor)]
    return sum({id(storage): storage.nbytes() for storage in storages}.values())


class _Alive(TorchDispatchMode):
    """Counts the bytes of storages that operations made and that are alive, but ``besides``."""

    def __init__(self, besides: list[Tensor]) -> None:
        super().__init__()
        # By id, with the storage itself, because the id of one that is gone may be given again.
        self._besides = {id(s): s for s in (tensor.untyped_storage() for tensor in besides)}
        self._sizes: dict[int, tuple[Any, int]] = {}
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it made."""
        read = args[0] if func is torch.ops.aten._local_scalar_dense.default else None
        if isinstance(read, FakeTensor) and read.dtype == torch.bool:
            return False  # no position restarts: of a fake tensor it cannot be read
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                self._count(tensor.untyped_storage())
        return output

    def _count(self, storage: Any) -> None:
        key = id(storage)
        if key in self._sizes or key in self._besides:
            return
        size = storage.nbytes()

        def ended(_: Any) -> None:
            self.now -= self._sizes.pop(key)[1]

        self._sizes[key] = (weakref.ref(storage, ended), size)
        self.now += size
        self.peak = max(self.peak, self.now)
