"""Weights that two modules share, while parts are merged into one of the modules.

The input and the output embeddings of most models are one tensor. A part on one of them changes
that one alone, so merged they are two tensors, and the model's config has to say so: loading would
tie them again.
"""

import copy
import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from lorada.tuners.base.linears import has_adapter, wrappers

TIED = "tie_word_embeddings"


def give_own_weights(model: nn.Module, names: list[str]) -> None:
    """Copy each weight that one of these adapters changes and that another module uses too."""
    users = Counter(
        id(p) for module in model.modules() for p in module._parameters.values() if p is not None
    )
    for chain in wrappers(model).values():
        if not any(has_adapter(layer, name) for layer in chain for name in names):
            continue
        base = chain[-1].get_base_layer()
        for key, parameter in base._parameters.items():
            if parameter is not None and users[id(parameter)] > 1:
                users[id(parameter)] -= 1
                base._parameters[key] = copy.deepcopy(parameter)


@contextmanager
def ties_settled(model: nn.Module) -> Iterator[None]:
    """Tie or untie a model's shared weights after it was unloaded within this context.

    Weights that are still equal stay one tensor. Otherwise each gets its own, and the config says
    so. PEFT does this for the embeddings, but not for the other weights that an encoder-decoder
    ties to them, and its change of the config would change what a T5 computes. So the config says
    "not tied" while PEFT is at work.
    """
    config = getattr(model, "config", None)
    tied = getattr(config, TIED, False) is True
    if tied:
        config.tie_word_embeddings = False  # type: ignore[union-attr]
    try:
        yield
    finally:
        if tied:
            config.tie_word_embeddings = True  # type: ignore[union-attr]
    if isinstance(model, PreTrainedModel):
        _tie_or_untie(model)


def _tie_or_untie(model: PreTrainedModel) -> None:
    pairs = getattr(model, "all_tied_weights_keys", None) or {}
    found = [(_owner(model, target), _owner(model, source)) for target, source in pairs.items()]
    if all(_equal(_weight(target), _weight(source)) for target, source in found):
        for (module, key), source in found:
            module._parameters[key] = _weight(source)
        return
    for module, key in (target for target, _ in found):
        module._parameters[key] = copy.deepcopy(module._parameters[key])
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.all_tied_weights_keys = {}
            if _only_ties(part):
                part.config.tie_word_embeddings = False


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the parameter of a name, and the parameter's own name there."""
    owner, _, key = name.rpartition(".")
    return model.get_submodule(owner), key


def _weight(owner: tuple[nn.Module, str]) -> nn.Parameter | None:
    return owner[0]._parameters[owner[1]]


def _equal(one: nn.Parameter | None, other: nn.Parameter | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _only_ties(model: PreTrainedModel) -> bool:
    """Whether ``tie_word_embeddings`` of a config decides on nothing but tying.

    A T5 also scales its outputs by it, so there it stays as it is. transformers ties no weights
    that differ in the file anyway; it warns.
    """
    said = model.config.to_dict()
    if TIED not in said:
        return False
    read = [type(model.config).from_dict({**said, TIED: tied}).to_dict() for tied in (True, False)]
    changed = {key for key in said if read[0].get(key) != read[1].get(key)}
    return changed == {TIED} and f"config.{TIED}" not in inspect.getsource(type(model).forward)
