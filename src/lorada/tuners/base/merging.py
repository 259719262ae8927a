"""Merging parts into the weights they wrap: what cannot be, and weights that two modules share.

The input and the output embeddings of most models are one tensor. A part on one of them changes
that one alone, so merged they are two, and the config has to say so, or loading would tie them.
"""

import copy
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, onload_layer
from torch import nn
from transformers import PreTrainedModel

from lorada.tuners.stack.nesting import chains, holds, tuner_of

TIED = "tie_word_embeddings"


def refuse_unmergeable(model: nn.Module, name: str, tuners: list[BaseTuner]) -> None:
    """Refuse to merge an adapter in which a part wraps weights and cannot be merged into them.

    Args:
        model: the model the parts are on.
        name: of the adapter.
        tuners: of its parts around weights.

    Raises:
        ValueError: naming the part.
    """
    for tuner in tuners:
        part: PeftConfig = tuner.peft_config[name]
        kept = _reason(part)
        if kept is None and not getattr(tuner_of(part), "mergeable", True):
            kept = f"a stack with {type(part).__name__} cannot be merged into the weights"
        if kept is not None:
            raise ValueError(f"{kept}: keep it as an adapter")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tied weights, which get one each here
            tuner._check_merge_allowed()
    for place, chain in chains(model).items():
        for layer in chain:
            biased = getattr(layer, "lora_bias", {}).get(name, False)
            if biased and getattr(layer.get_base_layer(), "bias", None) is None:
                raise ValueError(
                    f"lora_bias=True cannot be merged into {place}, which has no bias: "
                    "keep it as an adapter"
                )


def _reason(part: Any) -> str | None:
    if tokens := getattr(part, "alora_invocation_tokens", None):
        return (
            f"alora_invocation_tokens={tokens} changes only what follows these tokens, "
            "which no weight can say"
        )
    if getattr(part, "layer_replication", None):
        return "layer_replication makes layers that share their weights, so none can be changed"
    return None


@contextmanager
def one_line() -> Iterator[None]:
    """Make PEFT's word that a kind of layer cannot be merged an error in one line.

    Raises:
        ValueError: in place of its ``NotImplementedError``.
    """
    try:
        yield
    except NotImplementedError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"this adapter cannot be merged into the weights: {text}") from error


def merge_inner(model: nn.Module, **options: Any) -> None:
    """Merge the layers that PEFT's ``merge_and_unload`` does not see: it takes the outermost."""
    for chain in chains(model).values():
        for layer in reversed(chain[1:]):
            layer.merge(**options)


def merge_all(model: nn.Module, **options: Any) -> None:
    """Merge from the inside out: an outer layer, such as IA3's, scales what the inner ones add."""
    merge_inner(model, **options)
    for chain in chains(model).values():
        with onload_layer(chain[0]):
            chain[0].merge(**options)


def give_own_weights(model: nn.Module, names: list[str]) -> None:
    """Give the weights that adapters change to the wrapped modules alone, where others use them.

    Args:
        model: the model the adapters are on.
        names: of the adapters.
    """
    users = Counter(
        id(p) for module in model.modules() for p in module._parameters.values() if p is not None
    )
    for chain in chains(model).values():
        if not any(holds(layer, name) for layer in chain for name in names):
            continue
        base = chain[-1].get_base_layer()
        for key, parameter in base._parameters.items():
            if parameter is not None and users[id(parameter)] > 1:
                users[id(parameter)] -= 1
                base._parameters[key] = copy.deepcopy(parameter)


@contextmanager
def ties_settled(model: nn.Module) -> Iterator[None]:
    """Let a model that is unloaded meanwhile say afterwards whether its tied weights still are one.

    Where they have come to differ, each gets its own tensor, and the config says so. PEFT looks
    at the embeddings too, but not at the others that an encoder–decoder ties to them, and its word
    in the config would change what a T5 computes; so it does not get to see that they were tied.
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
        _untie(model)


def _untie(model: PreTrainedModel) -> None:
    pairs = getattr(model, "all_tied_weights_keys", None) or {}
    found = [(_place(model, target), _place(model, source)) for target, source in pairs.items()]
    if all(_alike(_weight(target), _weight(source)) for target, source in found):
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


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, key = name.rpartition(".")
    return model.get_submodule(owner), key


def _weight(place: tuple[nn.Module, str]) -> nn.Parameter | None:
    return place[0]._parameters[place[1]]


def _alike(one: nn.Parameter | None, other: nn.Parameter | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _only_ties(model: PreTrainedModel) -> bool:
    """Whether the config's word on tying says nothing else, as it does of T5's scaled outputs.

    Where it does, it stays. transformers ties no weights that differ in the file anyway, it warns.
    """
    said = model.config.to_dict()
    if TIED not in said:
        return False
    read = [type(model.config).from_dict({**said, TIED: tied}).to_dict() for tied in (True, False)]
    changed = {key for key in said if read[0].get(key) != read[1].get(key)}
    return changed == {TIED} and f"config.{TIED}" not in inspect.getsource(type(model).forward)
