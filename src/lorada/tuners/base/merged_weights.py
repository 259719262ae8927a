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
from collections.abc import Iterator
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
    for place, chain in wrappers(model).items():
        own = [layer for layer in chain if any(has_adapter(layer, name) for name in names)]
        linear: Any = linear_of(chain[0])
        if not own or linear is None or not is_plain(linear):
            continue
        with onload_layer(chain[0]):
            if _is_linear(chain, linear, names):
                continue
            alone = [layer for layer in own if not _is_linear(chain, linear, names, only=layer)]
        kinds = sorted({layer_kind(layer).__name__ for layer in alone or own})
        raise UnmergeableError(
            f"{' and '.join(kinds)} on {place} is not linear in each token, so it cannot be merged "
            "into the weights: keep it as an adapter"
        )


@torch.no_grad()
def _is_linear(chain: Any, linear: Any, names: list[str], only: Any = None) -> bool:
    """Whether a chain is W x + b of each token alone; of the adapters in one layer with ``only``.

    It is, if a mixture of two tokens is mapped to the same mixture of what they are mapped to, and
    a token of a sequence to what it is mapped to without the others.
    """
    fan_in, _ = _get_in_out_features(linear)
    generator = torch.Generator().manual_seed(0)  # the user's random numbers stay as they are
    tokens = torch.randn(2, fan_in, generator=generator, dtype=torch.float64)
    # Each adds up to 1, so that a bias stays what it is; the last leaves the range of the tokens.
    mixtures = torch.tensor([[0.3, 0.7], [3.0, -2.0], [-20.0, 21.0]], dtype=torch.float64)
    inputs = torch.cat((tokens, mixtures @ tokens))
    with _computing(chain, linear, names, only):
        inputs = inputs.to(linear.weight)
        together = chain[0](inputs[None])[0].double()
        alone = chain[0](inputs[:, None])[:, 0].double()
    outputs, mixtures = together[:2], mixtures.to(together)
    gaps = torch.cat((together - alone, together[2:] - mixtures @ outputs)).abs().amax(1)
    # A mixture is as exact as the outputs that are added up to it.
    sizes = torch.cat((together.abs(), mixtures.abs() @ outputs.abs())).amax(1)
    # A weight that is not a number is no dependence: ``safe_merge`` finds it.
    return not bool((gaps > ROUNDING * sizes).any())


def merge_all(
    model: nn.Module, names: list[str], *, safe_merge: bool = False, undo: bool = True
) -> None:
    """Merge adapters into the weights; without ``undo`` no copy of the weights before is kept."""
    for chain in wrappers(model).values():
        together = [name for layer in chain for name in layer.merged_adapters]
        together = list(dict.fromkeys([*together, *names]))
        own = merged_together(chain, together)
        with onload_layer(chain[0]):
            # PEFT's function warns if nothing is left to merge.
            if any(check_adapters_to_merge(layer, names) for layer in own):
                unmerge_chain(chain)
                _fold(chain, own, together, safe_merge, undo)
            if own:
                continue
            for layer in reversed(chain):
                if here := [name for name in names if has_adapter(layer, name)]:
                    layer.merge(safe_merge=safe_merge, adapter_names=here)


def merged_together(chain: list[Any], names: list[str]) -> list[Any]:
    """The layers of some adapters around a module, if they are merged into what they compute."""
    own = [layer for layer in chain if any(has_adapter(layer, name) for name in names)]
    kinds = {cls.__name__ for layer in own for cls in type(layer).__mro__}
    return own if linear_of(chain[0]) is not None and (len(own) > 1 or FOLDED & kinds) else []


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
def _fold(chain: Any, own: list[Any], names: list[str], safe_merge: bool, undo: bool) -> None:
    linear = chain[-1].get_base_layer()
    plain_matrix(linear, "merging")
    found = _linear_map(chain, linear, names)
    if safe_merge and not all(torch.isfinite(value).all() for value in found.values()):
        said = f"The adapter {', '.join(names)} seems to be broken"  # PEFT's text
        raise ValueError(f"NaNs detected in the merged weights. {said}")
    before = {key: p.data for key, p in linear.named_parameters(recurse=False)}
    # A partial function and not a closure: a copy of the model unmerges its own layers.
    unfold = partial(_unfold, linear, own, before) if undo else None
    for key, value in found.items():
        parameter = getattr(linear, key)
        parameter.data = value.to(parameter.dtype).contiguous()
    for layer in own:
        layer.merged_adapters = [name for name in names if has_adapter(layer, name)]
        layer.unmerge = unfold


def _linear_map(chain: Any, linear: Any, names: list[str]) -> dict[str, Tensor]:
    """Weight and bias, as the linear layer stores them, of what a chain computes."""
    fan_in, _ = _get_in_out_features(linear)
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
def _computing(chain: Any, linear: nn.Module, names: list[str], only: Any = None) -> Iterator[None]:
    """Let a chain compute with these adapters, without dropout, in float32 or wider.

    With ``only`` just this layer of the chain does, and the others pass through what they wrap.
    """
    wanted: list[tuple[Any, str, Any]]
    wanted = [(module, "training", False) for module in chain[0].modules()]
    for module in (*chain, linear):
        # What stands beside the chain, such as a bottleneck at this place, is no part of it.
        wanted += [(module, key, OrderedDict()) for key in ("_forward_hooks", "_forward_pre_hooks")]
    for layer in chain:
        wanted += [(layer, "_active_adapter", names), (layer, "merged_adapters", [])]
        wanted += [(layer, "_disable_adapters", only is not None and layer is not only)]
    # Adapters in 16 bits are widened too, or they would round what they add to each token.
    tensors = [*chain[0].parameters(), *chain[0].buffers()]
    wanted += [(x, "data", wide(x.data)) for x in tensors if x.dtype.is_floating_point]
    before = [(owner, key, getattr(owner, key)) for owner, key, _ in wanted]
    try:
        for owner, key, value in wanted:
            setattr(owner, key, value)
        yield
    finally:
        for owner, key, value in before:
            setattr(owner, key, value)


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
    tied = getattr(model, "all_tied_weights_keys", None) or {}  # models of others may lack it
    found = [(model.get_parameter(one), model.get_parameter(other)) for one, other in tied.items()]
    if all(one is other or torch.equal(one, other) for one, other in found):
        if tied:
            model.tie_weights(recompute_mapping=False)
        return
    for target in tied:
        owner, _, key = target.rpartition(".")
        module = model.get_submodule(owner)
        module._parameters[key] = copy.deepcopy(module._parameters[key])
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.all_tied_weights_keys = {}
            if _only_ties(part):
                part.config.tie_word_embeddings = False


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
