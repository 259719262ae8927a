"""Weights that two modules share (tied weights), when a part is merged into one of them.

The input and the output embeddings of most models are one tensor. A part on one of them changes
only that one. After merging they are two tensors, and the model's config must say so, since loading
would tie them again.
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
    """Copy each weight that one of these adapters changes and that another module shares."""
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
    """Tie or untie a model's shared weights at the end of this context, in which it is unloaded.

    Weights that are still equal stay one tensor. Otherwise each module gets its own, and the config
    says so. PEFT does this only for the embeddings, not for other weights that an encoder-decoder
    ties to them, and its change of the config changes the outputs of a T5. So within the context
    the config says "not tied", which makes PEFT do nothing.
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
    """The module that holds the parameter of this name, and the parameter's name in it."""
    owner, _, key = name.rpartition(".")
    return model.get_submodule(owner), key


def _weight(owner: tuple[nn.Module, str]) -> nn.Parameter | None:
    return owner[0]._parameters[owner[1]]


def _equal(one: nn.Parameter | None, other: nn.Parameter | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _only_ties(model: PreTrainedModel) -> bool:
    """Whether ``tie_word_embeddings`` of a model's config has no other effect than tying.

    A T5 also scales its outputs by it, so its config is not changed. transformers does not tie
    weights that differ in the file; it warns.
    """
    own = model.config.to_dict()
    if TIED not in own:
        return False
    read = [type(model.config).from_dict({**own, TIED: tied}).to_dict() for tied in (True, False)]
    changed = {key for key in own if read[0].get(key) != read[1].get(key)}
    return changed == {TIED} and f"config.{TIED}" not in inspect.getsource(type(model).forward)
