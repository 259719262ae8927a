"""The task head of a model, which trains and is saved with every method, and is never counted.

A head is what transformers puts on a base model to get classes or scores. Parameters that the
checkpoint lacks, such as DeBERTa's pooler, are drawn at random when the model is loaded. They
belong to the head too: if they were not saved, they would differ after each loading.
"""

import re
from collections.abc import Collection, Iterable

import torch
from torch import nn

# What task heads are called in transformers' models.
HEADS = ("classifier", "score", "pre_classifier", "classification_head")
POOLER = "pooler"  # the module that makes one vector of a text; in some models part of the base
PEFT_NAMES = "base_model.model."  # PEFT puts this before every name of a model with an adapter


def head_modules(model: nn.Module, drawn: Iterable[str] = ()) -> tuple[str, ...]:
    """The names of the modules of a model's task head, before a method is placed on the model.

    ``drawn`` are the names of the parameters that its checkpoint lacked.
    """
    named = (name for name, _ in model.named_modules() if name.rpartition(".")[2] in HEADS)
    found = [*named, *(_owner(name) for name in drawn)]
    return tuple(sorted({name for name in found if not any(_lies_in(name, o) for o in found)}))


def _owner(parameter: str) -> str:
    """The module of the head that a drawn parameter lies in."""
    path = parameter.split(".")
    return ".".join(path[: path.index(POOLER) + 1]) if POOLER in path else path[0]


def _lies_in(name: str, module: str) -> bool:
    return name.startswith(f"{module}.")


def in_head(name: str, head: Collection[str]) -> bool:
    """Whether a parameter belongs to a task head, given the names of the head's modules."""
    return any(_lies_in(name.removeprefix(PEFT_NAMES), module) for module in head)


def may_be_drawn(name: str, backbone: str) -> bool:
    """Whether a parameter that a checkpoint lacks belongs to a head, not to the base itself.

    ``backbone`` is the name of the base within the model (transformers' ``base_model_prefix``).
    """
    return POOLER in name.split(".") or not _lies_in(name, backbone)


def widen_trained(model: nn.Module) -> None:
    """Put what trains of a model in 16 bits into fp32; bf16 loses updates below 1/256 of a weight.

    Its forward pass then has to run under autocast. The weights of a norm, which autocast does not
    cast on every device, are all in one dtype.
    """
    narrow = {id(parameter) for parameter in narrow_trained(model)}
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        trained = [parameter for parameter in own if id(parameter) in narrow]
        norm = all(parameter.dim() == 1 for parameter in own)
        for parameter in own if trained and norm else trained:
            parameter.data = parameter.data.float()


def narrow_trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train in 16 bits."""
    narrow = (torch.bfloat16, torch.float16)
    return [p for p in model.parameters() if p.requires_grad and p.dtype in narrow]


def select_trainable(
    model: nn.Module, rule: str, head: Collection[str] = (), with_head: str | None = None
) -> None:
    """Freeze every parameter except those with names that match a rule, and those of the head.

    ``rule`` and ``with_head`` (further parameters that train with the head) are regexes; ``head``
    has the names of the head's modules.
    """
    chosen = {name for name, _ in model.named_parameters() if re.search(rule, name)}
    if not chosen:
        raise ValueError(
            f"no parameter of {type(model).__name__} matches {rule!r}: "
            "this method is not defined for this model"
        )
    for name, parameter in model.named_parameters():
        extra = with_head is not None and re.search(with_head, name) is not None
        parameter.requires_grad_(name in chosen or extra or in_head(name, head))
