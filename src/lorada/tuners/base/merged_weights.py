"""Merging parts into the weights of the base, and weights that two modules share.

Parts of ours, and several parts on one linear layer, are merged into what they compute together:

    W = f(I) - f(0),    b = f(0)

Merged one after the other, a part around others would read what the inner parts have made of the
base weight: DoRA's norm is that of the base weight plus its own term, and HiRA multiplies it. One
part of PEFT alone merges itself.

The input and the output embeddings of most models are one tensor (tied weights). A part on one of
them changes only that one. After merging they are two tensors, and the model's config must say so,
since loading would tie them again. A model that ties more weights than these two is refused.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge, onload_layer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorada.functional.precision import wide
from lorada.tuners.base.linears import has_adapter, linear_of, plain_weight, widths, wrappers

ROWS = 1024  # unit vectors at a time
# Our layers, and those of PEFT that cannot undo a merge themselves, or only up to 1e-8, as IA3's.
FOLDED = {"LoradaTunerLayer", "IA3Layer", "OSFLayer"}


def merge_all(
    model: nn.Module, names: list[str], *, safe_merge: bool = False, undo: bool = True
) -> None:
    """Merge adapters into the weights; without ``undo`` no copy of the weights before is kept."""
    for chain in wrappers(model).values():
        together = [name for layer in chain for name in layer.merged_adapters]
        together = list(dict.fromkeys([*together, *names]))
        own = [layer for layer in chain if any(has_adapter(layer, name) for name in together)]
        kinds = {cls.__name__ for layer in own for cls in type(layer).__mro__}
        with onload_layer(chain[0]):
            if linear_of(chain[0]) is not None and (len(own) > 1 or FOLDED & kinds):
                left = [check_adapters_to_merge(layer, names) for layer in own]  # warns if none is
                if any(left):
                    unmerge_chain(chain)
                    _fold(chain, own, together, safe_merge, undo)
                continue
            for layer in reversed(own):
                here = [name for name in names if has_adapter(layer, name)]
                layer.merge(safe_merge=safe_merge, adapter_names=here)


def unmerge_chain(chain: Any) -> None:
    """Unmerge the layers around one module, from the outside in; others stay as they are."""
    for layer in chain:
        if layer.merged:
            layer.unmerge()


class Unfold:
    """In place of ``unmerge`` of folded layers: gives the linear layer its weights back."""

    def __init__(self, linear: nn.Module, layers: list[Any]) -> None:
        self.linear, self.layers = linear, layers
        self.before = {key: p.data for key, p in linear.named_parameters(recurse=False)}

    def __call__(self) -> None:
        """Unmerge all of the layers."""
        for key, before in self.before.items():
            parameter = getattr(self.linear, key)
            parameter.data = before.to(parameter)
        for layer in self.layers:
            layer.merged_adapters = []
            del layer.unmerge


@torch.no_grad()
def _fold(chain: Any, own: list[Any], names: list[str], safe_merge: bool, undo: bool) -> None:
    linear = chain[-1].get_base_layer()
    plain_weight(linear, "merging")
    found = _linear_map(chain, linear, names)
    if safe_merge and not all(torch.isfinite(value).all() for value in found.values()):
        said = f"The adapter {', '.join(names)} seems to be broken"  # PEFT's text
        raise ValueError(f"NaNs detected in the merged weights. {said}")
    unfold = Unfold(linear, own) if undo else None
    for key, value in found.items():
        parameter = getattr(linear, key)
        parameter.data = value.to(parameter.dtype).contiguous()
    for layer in own:
        layer.merged_adapters = [name for name in names if has_adapter(layer, name)]
        layer.unmerge = unfold


def _linear_map(chain: Any, linear: Any, names: list[str]) -> dict[str, Tensor]:
    """Weight and bias, as the linear layer stores them, of what a chain computes."""
    fan_in, _ = widths(linear)
    found = {}
    with _computing(chain, linear, names):
        zero = linear.weight.new_zeros(1, 1, fan_in)
        if linear.bias is not None:
            found["bias"] = chain[0](zero)[0, 0]
            linear.bias.data = torch.zeros_like(linear.bias)  # a large one would round the weight
        units = torch.arange(fan_in, device=zero.device).split(ROWS)
        rows = torch.cat([chain[0](F.one_hot(i, fan_in).to(zero)[None])[0] for i in units])
        rows = rows - chain[0](zero)[0]
    return {"weight": rows if isinstance(linear, Conv1D) else rows.T, **found}


@contextmanager
def _computing(chain: Any, linear: nn.Module, names: list[str]) -> Iterator[None]:
    """Let a chain compute with these adapters, without dropout, in float32 or wider."""
    wanted: list[tuple[Any, str, Any]]
    wanted = [(module, "training", False) for module in chain[0].modules()]
    wanted += [(layer, "_active_adapter", names) for layer in chain]
    wanted += [(layer, "_disable_adapters", False) for layer in chain]
    wanted += [(p, "data", wide(p.data)) for p in linear.parameters(recurse=False)]
    before = [(owner, key, getattr(owner, key)) for owner, key, _ in wanted]
    try:
        for owner, key, value in wanted:
            setattr(owner, key, value)
        yield
    finally:
        for owner, key, value in before:
            setattr(owner, key, value)


def give_own_weights(model: nn.Module, names: list[str]) -> None:
    """Copy each weight that one of these adapters changes and that another module shares.

    Trained tokens set the same rows of both modules, so their weight stays shared.
    """
    users = Counter(
        id(p) for module in model.modules() for p in module._parameters.values() if p is not None
    )
    for chain in wrappers(model).values():
        changing = [layer for layer in chain if not isinstance(layer, TrainableTokensLayer)]
        if not any(has_adapter(layer, name) for layer in changing for name in names):
            continue
        base: Any = chain[-1].get_base_layer()
        for key, parameter in base._parameters.items():
            if parameter is not None and users[id(parameter)] > 1:
                users[id(parameter)] -= 1
                base._parameters[key] = copy.deepcopy(parameter)


def refuse_ties(model: nn.Module) -> None:
    """Refuse to unload a model that ties more than two weights if an adapter changes one of them.

    Its config could not say which are tied, and a T5 also scales its outputs by that setting.
    """
    pairs = getattr(model, "all_tied_weights_keys", None) or {}
    for name in (*pairs, *pairs.values()) if len(pairs) > 1 else ():
        owner: Any = model
        for part in name.split(".")[:-1]:
            owner = getattr(owner, part)
            if isinstance(owner, BaseTunerLayer | AuxiliaryTrainingWrapper):
                raise ValueError(
                    f"the adapter changes {name}, one of several weights that "
                    f"{type(model).__name__} ties to each other, so its weights cannot be those "
                    "of a plain model: keep it as an adapter"
                )


def say_untied(model: nn.Module) -> None:
    """Say in the config of an unloaded model if its embeddings are two; PEFT does if it merges."""
    if isinstance(model, PreTrainedModel) and getattr(model.config, "tie_word_embeddings", False):
        head = model.get_output_embeddings()
        if head is not None and head.weight is not model.get_input_embeddings().weight:
            model.config.tie_word_embeddings = False
