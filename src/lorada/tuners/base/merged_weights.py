"""Merging parts into the weights of the base, and weights that two modules share.

Parts of ours, and several parts on one linear layer, are merged into what they compute together:

    W = f(I) - f(0),    b = f(0)

Merged one after the other, a part around others would read what the inner parts have made of the
base weight: DoRA's norm and HiRA's product would be of the changed weight. One part of PEFT alone
merges itself.

The input and the output embeddings of most models are one tensor (tied weights). A part on one of
them changes only that one; merged they are two, and the config must say so, or loading ties them.
"""

import copy
import inspect
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import _get_in_out_features, check_adapters_to_merge, onload_layer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorada.functional.precision import wide
from lorada.tuners.base.linears import (
    has_adapter,
    is_plain,
    layer_kind,
    linear_of,
    plain_matrix,
    wrappers,
)

ROWS = 1024  # unit vectors at a time
# The largest rounding of a linear function, relative to its outputs. Parts may be kept or computed
# in float32 on a base of any dtype.
ROUNDING = 64 * torch.finfo(torch.float32).eps
# Our layers, and those of PEFT that cannot undo a merge themselves, or only up to 1e-8, as IA3's.
FOLDED = {"LoradaTunerLayer", "IA3Layer", "OSFLayer"}


class UnmergeableError(ValueError):
    """A part that cannot be merged into the weights, but can be an adapter beside them."""


def refuse_nonlinear(model: nn.Module, names: list[str]) -> None:
    """Refuse to merge adapters that make a linear layer nonlinear, before any weight is changed.

    Each such layer is tried on random tokens, so this holds for any tuner. A quantised layer is
    not: one part alone is on it then, which its own tuner merges or not.
    """
    for module_name, chain in wrappers(model).items():
        adapter_layers = layers_with(chain, names)
        linear: Any = linear_of(chain[0])
        if not adapter_layers or linear is None or not is_plain(linear):
            continue
        with onload_layer(chain[0]):
            if _is_linear(chain, linear, names):
                continue
            # Which of the layers are to blame; if each alone is linear, all of them are together.
            nonlinear = []
            for layer in adapter_layers:
                if not _is_linear(chain, linear, names, only=layer):
                    nonlinear.append(layer)
        kinds = sorted({layer_kind(layer).__name__ for layer in nonlinear or adapter_layers})
        raise UnmergeableError(
            f"{' and '.join(kinds)} on {module_name} is not linear in each token, so it cannot be "
            "merged into the weights: keep it as an adapter"
        )


def layers_with(chain: Iterable[Any], names: Iterable[str]) -> list[Any]:
    """The layers around a module that have weights of at least one of some adapters."""
    names = list(names)
    return [layer for layer in chain if _has_any(layer, names)]


def _has_any(layer: Any, names: list[str]) -> bool:
    """Whether a layer has weights of at least one of some adapters."""
    return any(has_adapter(layer, name) for name in names)


@torch.no_grad()
def _is_linear(chain: Any, linear: Any, names: list[str], only: Any = None) -> bool:
    """Whether a chain is f(x) = W x + b of each token alone; of the adapters in ``only`` if given.

    It is, if a mixture of two tokens is mapped to the same mixture of what they are mapped to, and
    a token of a sequence to what it is mapped to without the others.
    """
    fan_in, _ = _get_in_out_features(linear)
    generator = torch.Generator().manual_seed(0)  # the user's random numbers stay as they are
    tokens = torch.randn(2, fan_in, generator=generator, dtype=torch.float64)
    # Each adds up to 1, so that a bias stays what it is; the last leaves the range of the tokens.
    weights = torch.tensor([[0.3, 0.7], [3.0, -2.0], [-20.0, 21.0]], dtype=torch.float64)
    inputs = torch.cat((tokens, weights @ tokens))
    with _computing(chain, linear, names, only):
        inputs = inputs.to(linear.weight)
        in_sequence = chain[0](inputs[None])[0].double()
        alone = chain[0](inputs[:, None])[:, 0].double()
    if not _are_rounded_alike(in_sequence, alone, in_sequence.abs()):
        return False
    of_tokens, of_mixtures = in_sequence.split((2, 3))
    weights = weights.to(of_tokens)
    # A mixture is as exact as the outputs that are added up to it.
    sizes = weights.abs() @ of_tokens.abs()
    return _are_rounded_alike(of_mixtures, weights @ of_tokens, sizes)


def _are_rounded_alike(outputs: Tensor, others: Tensor, sizes: Tensor) -> bool:
    """Whether no output (tokens, out) differs by more than rounding, given how large its terms are.

    A weight that is not a number counts as no difference: ``safe_merge`` finds it.
    """
    gaps = (outputs - others).abs().amax(1)
    return not bool((gaps > ROUNDING * sizes.amax(1)).any())


def merge_all(
    model: nn.Module, names: list[str], *, safe_merge: bool = False, undo: bool = True
) -> None:
    """Merge adapters into the weights; without ``undo`` no copy of the weights before is kept."""
    for chain in wrappers(model).values():
        # Adapters that are merged already and those to merge, each once and in this order.
        together: dict[str, None] = {}
        for layer in chain:
            together |= dict.fromkeys(layer.merged_adapters)
        together |= dict.fromkeys(names)
        folded = folded_layers(chain, together)
        with onload_layer(chain[0]):
            if not folded:
                _merge_one_by_one(chain, names, safe_merge=safe_merge)
            # PEFT's function warns if nothing is left to merge.
            elif any(check_adapters_to_merge(layer, names) for layer in folded):
                unmerge_chain(chain)
                _fold(chain, folded, list(together), safe_merge, undo)


def _merge_one_by_one(chain: list[Any], names: list[str], *, safe_merge: bool) -> None:
    """Let each layer around a module merge its adapters itself, from the inside out."""
    for layer in reversed(chain):
        names_in_layer = [name for name in names if has_adapter(layer, name)]
        if names_in_layer:
            layer.merge(safe_merge=safe_merge, adapter_names=names_in_layer)


def folded_layers(chain: list[Any], names: Iterable[str]) -> list[Any]:
    """The layers of some adapters around a module, if they are merged into what they compute.

    Empty if they merge themselves, as one layer of PEFT alone does.
    """
    adapter_layers = layers_with(chain, names)
    if linear_of(chain[0]) is None:
        return []
    class_names: set[str] = set()
    for layer in adapter_layers:
        class_names |= {cls.__name__ for cls in type(layer).__mro__}
    return adapter_layers if len(adapter_layers) > 1 or FOLDED & class_names else []


def unmerge_chain(chain: Any) -> None:
    """Unmerge the layers around one module, from the outside in; others stay as they are."""
    for layer in chain:
        if layer.merged:
            layer.unmerge()


def _unfold(linear: nn.Module, layers: list[Any], before: dict[str, Tensor]) -> None:
    """In place of ``unmerge`` of folded layers: give the linear layer its weights back."""
    for key, data in before.items():
        parameter = getattr(linear, key)
        parameter.data = data.to(parameter)
    for layer in layers:
        layer.merged_adapters = []
        del layer.unmerge


@torch.no_grad()
def _fold(
    chain: Any, adapter_layers: list[Any], names: list[str], safe_merge: bool, undo: bool
) -> None:
    """Put what a chain computes into its linear layer; ``adapter_layers`` are then merged.

    With ``safe_merge`` merged weights that are not finite are refused. With ``undo`` the layer
    keeps what undoes the merge.
    """
    linear = chain[-1].get_base_layer()
    plain_matrix(linear, "merging")
    merged = _linear_map(chain, linear, names)
    if safe_merge and not all(torch.isfinite(tensor).all() for tensor in merged.values()):
        reason = f"The adapter {', '.join(names)} seems to be broken"  # PEFT's text
        raise ValueError(f"NaNs detected in the merged weights. {reason}")
    before = {key: p.data for key, p in linear.named_parameters(recurse=False)}
    # A partial function and not a closure: a copy of the model unmerges its own layers.
    unfold = partial(_unfold, linear, adapter_layers, before) if undo else None
    for key, tensor in merged.items():
        parameter = getattr(linear, key)
        parameter.data = tensor.to(parameter.dtype).contiguous()
    for layer in adapter_layers:
        layer.merged_adapters = [name for name in names if has_adapter(layer, name)]
        layer.unmerge = unfold


def _linear_map(chain: Any, linear: Any, names: list[str]) -> dict[str, Tensor]:
    """W = f(I) - f(0) and b = f(0) of what a chain computes, as the linear layer stores them."""
    fan_in, _ = _get_in_out_features(linear)
    merged = {}
    with _computing(chain, linear, names):
        zero = linear.weight.new_zeros(1, 1, fan_in)
        if linear.bias is not None:
            merged["bias"] = chain[0](zero)[0, 0]
            linear.bias.data = torch.zeros_like(linear.bias)  # a large one would round the weight
        # Some unit vectors at a time; each is a token of a sequence, and gives a column of W.
        columns = []
        for indices in torch.arange(fan_in, device=zero.device).split(ROWS):
            units = F.one_hot(indices, fan_in).to(zero)
            columns.append(chain[0](units[None])[0])
        rows = torch.cat(columns)  # Wᵀ, (in, out)
        # A column W e_i is f(e_i) - f(0).
        rows = rows - chain[0](zero)[0]
    merged["weight"] = rows if isinstance(linear, Conv1D) else rows.T
    return merged


@contextmanager
def _computing(chain: Any, linear: nn.Module, names: list[str], only: Any = None) -> Iterator[None]:
    """Let a chain compute with these adapters, without dropout, in float32 or wider.

    With ``only`` just this layer of the chain does, and the others pass through what they wrap.
    """
    # Attributes to set for the time of this context: owner, name and value.
    changes: list[tuple[Any, str, Any]]
    changes = [(module, "training", False) for module in chain[0].modules()]
    for module in (*chain, linear):
        # What stands beside the chain, such as a bottleneck at this place, is no part of it.
        changes.append((module, "_forward_hooks", OrderedDict()))
        changes.append((module, "_forward_pre_hooks", OrderedDict()))
    for layer in chain:
        changes.append((layer, "_active_adapter", names))
        changes.append((layer, "merged_adapters", []))
        changes.append((layer, "_disable_adapters", only is not None and layer is not only))
    # Adapters in 16 bits are widened too, or they would round what they add to each token.
    for tensor in (*chain[0].parameters(), *chain[0].buffers()):
        if tensor.dtype.is_floating_point:
            changes.append((tensor, "data", wide(tensor.data)))
    before = [(owner, key, getattr(owner, key)) for owner, key, _ in changes]
    try:
        for owner, key, value in changes:
            setattr(owner, key, value)
        yield
    finally:
        for owner, key, value in before:
            setattr(owner, key, value)


TIED = "tie_word_embeddings"


def give_own_weights(model: nn.Module, names: list[str]) -> None:
    """Copy each weight that one of these adapters changes and that another module shares."""
    users: Counter[int] = Counter()  # id of a parameter → how many modules have it
    for module in model.modules():
        users.update(id(p) for p in module._parameters.values() if p is not None)
    for chain in wrappers(model).values():
        if not layers_with(chain, names):
            continue
        base = chain[-1].get_base_layer()
        for key, parameter in base._parameters.items():
            if parameter is not None and users[id(parameter)] > 1:
                users[id(parameter)] -= 1
                base._parameters[key] = copy.deepcopy(parameter)


@contextmanager
def ties_settled(model: nn.Module) -> Iterator[None]:
    """Tie or untie a model's shared weights at the end of this context, in which it is unloaded.

    Weights that are still equal stay one tensor; else each module gets its own. PEFT unties nothing
    but the embeddings, and its change of the config changes the outputs of a T5. So within the
    context the config says "not tied", which makes PEFT do nothing.
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
    """Tie weights that are equal after a merge again; else give each its own for good."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}  # models of others may lack it
    if all(_are_equal(model, name, other) for name, other in tied.items()):
        if tied:
            model.tie_weights(recompute_mapping=False)
        return
    for target in tied:
        owner, _, key = target.rpartition(".")
        module = model.get_submodule(owner)
        module._parameters[key] = copy.deepcopy(module._parameters[key])
    # A model may have models within, each with a config of its own, which would tie them again.
    for inner_model in model.modules():
        if isinstance(inner_model, PreTrainedModel):
            inner_model.all_tied_weights_keys = {}
            if _only_ties(inner_model):
                inner_model.config.tie_word_embeddings = False


def _are_equal(model: nn.Module, name: str, other: str) -> bool:
    """Whether two parameters of a model are one, or equal."""
    parameter, other_parameter = model.get_parameter(name), model.get_parameter(other)
    return parameter is other_parameter or torch.equal(parameter, other_parameter)


def _only_ties(model: PreTrainedModel) -> bool:
    """Whether ``tie_word_embeddings`` of a model's config has no other effect than tying.

    A T5 also scales its outputs by it, so its config is not changed. transformers does not tie
    weights that differ in the file; it warns.
    """
    settings = model.config.to_dict()
    if TIED not in settings:
        return False
    # A config may derive other settings from it when it is read.
    read_as_tied = type(model.config).from_dict({**settings, TIED: True}).to_dict()
    read_as_untied = type(model.config).from_dict({**settings, TIED: False}).to_dict()
    changed = {key for key in settings if read_as_tied.get(key) != read_as_untied.get(key)}
    return changed == {TIED} and f"config.{TIED}" not in inspect.getsource(type(model).forward)
