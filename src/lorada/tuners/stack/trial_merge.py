"""Whether a part can be merged: asked of its settings, and of its own tuner on one small matrix.

There is no list of names here, so this holds for the tuners of other packages too. What the trained
weights compute is asked when they are merged, by ``refuse_nonlinear``.
"""

import copy
import warnings
from functools import cache
from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from lorada.tuners.base.linears import is_wrapper
from lorada.tuners.base.part_config import LoradaPeftConfig
from lorada.tuners.stack.nested_layers import tuner_of

# The side of the matrix of a trial; block sizes, which must divide it, are powers of two.
SIDE = 256
MATRIX, ADAPTER = "matrix", "trial"
# The settings of any tuner that name modules of the model that a part was made for.
NAMING: dict[str, Any] = {
    "feedforward_modules": [], "rank_pattern": {}, "alpha_pattern": {}, "exclude_modules": None,
    "layers_to_transform": None, "layers_pattern": None, "modules_to_save": None,
}  # fmt: skip


def setting_against_merging(part: PeftConfig) -> str:
    """Why a setting of a part keeps it from being merged; empty if none does."""
    tokens = getattr(part, "alora_invocation_tokens", None)
    if tokens:
        return (
            f"alora_invocation_tokens={tokens} changes only what follows these tokens, "
            "which a merged weight cannot do: keep it as an adapter"
        )
    if getattr(part, "layer_replication", None):
        return (
            "layer_replication makes layers that share their weights, so none can be changed: "
            "keep it as an adapter"
        )
    return ""


def refuses_to_merge(part: PeftConfig) -> bool:
    """Whether the tuner of a part refuses to merge any part of its kind."""
    if isinstance(part, LoradaPeftConfig):
        return not part.mergeable
    kind = type(part)
    refused = _kind_refuses(kind)  # type: ignore[arg-type]
    if refused is None:  # the kind has no defaults for one matrix
        refused = _trial(_for_one_matrix(part))
    return refused is True


def is_mergeable(part: PeftConfig) -> bool:
    """Whether a trained part can be merged into the weights, as far as its config says."""
    return not (setting_against_merging(part) or refuses_to_merge(part))


@cache
def _kind_refuses(kind: type[PeftConfig]) -> bool | None:
    """Whether parts of a kind, with its default settings, refuse; None if none can be placed."""
    try:
        with warnings.catch_warnings(action="ignore"):
            part: Any = kind(target_modules=[MATRIX])  # type: ignore[call-arg]
    except (TypeError, ValueError):
        return None
    return _trial(part)


def _for_one_matrix(part: PeftConfig) -> PeftConfig:
    """A copy of a part with its settings, but for those that name modules."""
    copied: Any = copy.deepcopy(part)
    for name, value in NAMING.items():
        if hasattr(copied, name):
            setattr(copied, name, value)
    copied.target_modules = [MATRIX]
    return copied


def _trial(part: PeftConfig) -> bool | None:
    """Whether a tuner refuses to merge a part into one matrix; None if it cannot place it there."""
    model = nn.Module()
    # A trial leaves alone what is drawn after it, and needs weights even where models are on meta.
    with (
        warnings.catch_warnings(action="ignore"),
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
    ):
        model.add_module(MATRIX, nn.Linear(SIDE, SIDE))
        try:
            tuner_of(part)(model, {ADAPTER: part}, ADAPTER)
        except Exception:  # of any kind, as each tuner has its own needs
            return None
        layer: Any = model.get_submodule(MATRIX)
        if not is_wrapper(layer):
            return None
        try:
            layer.merge(adapter_names=[ADAPTER])
        except (ValueError, NotImplementedError):
            return True
        except Exception:  # it merges something else than a matrix
            return None
    return False
