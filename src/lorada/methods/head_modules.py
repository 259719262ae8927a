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
    names = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in HEADS}
    names |= {_drawn_module(parameter) for parameter in drawn}
    # A module within another of the head, such as the ``score`` of a classifier, is named by it.
    outermost = [name for name in names if not _lies_in_any(name, names)]
    return tuple(sorted(outermost))


def _drawn_module(parameter: str) -> str:
    """The module of the head that a drawn parameter lies in."""
    path = parameter.split(".")
    return ".".join(path[: path.index(POOLER) + 1]) if POOLER in path else path[0]


def _lies_in_any(name: str, modules: Collection[str]) -> bool:
    """Whether a parameter or a module lies within one of some modules."""
    return name.startswith(tuple(f"{module}." for module in modules))


def in_head(name: str, head: Collection[str]) -> bool:
    """Whether a parameter belongs to a task head, given the names of the head's modules."""
    return _lies_in_any(name.removeprefix(PEFT_NAMES), head)


def may_be_drawn(name: str, backbone: str) -> bool:
    """Whether a parameter that a checkpoint lacks belongs to a head, not to the base itself.

    ``backbone`` is the name of the base within the model (transformers' ``base_model_prefix``).
    """
    return POOLER in name.split(".") or not _lies_in_any(name, [backbone])


def widen_trained(model: nn.Module) -> None:
    """Put what trains of a model in 16 bits into fp32; bf16 loses updates below 1/256 of a weight.

    Its forward pass then has to run under autocast. The weights of a norm, which autocast does not
    cast on every device, are all in one dtype.
    """
    narrow_ids = {id(parameter) for parameter in narrow_trained(model)}
    for module in model.modules():
        parameters = list(module.parameters(recurse=False))
        narrow = [parameter for parameter in parameters if id(parameter) in narrow_ids]
        is_norm = all(parameter.dim() == 1 for parameter in parameters)
        for parameter in parameters if narrow and is_norm else narrow:
            parameter.data = parameter.data.float()


def narrow_trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train in 16 bits."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        parameter for parameter in trained if parameter.dtype in (torch.bfloat16, torch.float16)
    ]


def select_trainable(
    model: nn.Module, rule: str, head: Collection[str] = (), with_head: str | None = None
) -> None:
    """Freeze every parameter except those with names that match a rule, and those of the head.

    ``rule`` and ``with_head`` (further parameters that train with the head) are regexes; ``head``
    has the names of the head's modules.

    Raises:
        ValueError: if no parameter matches the rule.
    """
    matches = {name for name, _ in model.named_parameters() if re.search(rule, name)}
    if not matches:
        raise ValueError(
            f"no parameter of {type(model).__name__} matches {rule!r}: "
            "this method is not defined for this model"
        )
    for name, parameter in model.named_parameters():
        trains_with_head = with_head is not None and re.search(with_head, name) is not None
        parameter.requires_grad_(name in matches or trains_with_head or in_head(name, head))
