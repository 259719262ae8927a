"""The weights of a method that trains part of a base, such as BitFit's biases, saved alone.

They are one file, which names the base that they belong to, as an adapter's config does.
"""

from collections.abc import Collection
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from lorada.methods.build import Plan
from lorada.methods.method import EVERYTHING
from lorada.methods.task_head import in_head
from lorada.support.version import __version__
from lorada.training.models.adapters import UNFIT, Base, refuse_lost
from lorada.training.models.loading import reading
from lorada.training.models.origin import refuse_other_type
from lorada.training.models.pooling import pooling_of, refuse_other
from lorada.tuners.pooling import attach


def saved_names(model: nn.Module, base: Base, plan: Plan) -> frozenset[str] | None:
    """The names of the parameters that are saved of a model that trains itself.

    They are those that train, the head, and what the base's checkpoint lacks. None for a model with
    an adapter, or one that is saved whole because everything trains.
    """
    if plan.trainable in (None, EVERYTHING):
        return None
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or name in base.drawn or in_head(name, base.head)
    )


def save_part(path: Path, model: PreTrainedModel, names: Collection[str], base: str) -> None:
    """Write some of a model's weights into a file, which also names the base and the pooling."""
    weights = model.state_dict()
    chosen = {name: weights[name].detach().cpu().contiguous() for name in sorted(names)}
    about = {
        "format": "pt",
        "tensors": str(len(chosen)),
        "base_model_name_or_path": base,
        "base_model_type": str(model.config.model_type),
        "pooling": pooling_of(model) or "",
        "lorada_version": __version__,
    }
    save_file(chosen, path, metadata=about)


def load_part(base: Base, path: Path, pooling: str | None) -> PreTrainedModel:
    """Put a saved part and the recipe's ``pooling`` on the base that it belongs to."""
    with reading("the tensors", str(path)):
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        weights = load_file(path)
    model = base.model
    refuse_other_type(about.get("base_model_type"), path, model.config)
    refuse_other(about.get("pooling") or None, pooling, path)
    if about.get("tensors") != str(len(weights)):
        raise ValueError(
            f"{path} has {len(weights)} of {about.get('tensors')} tensors: it is incomplete"
        )
    refuse_lost(base.drawn, weights, path)
    with reading("the tensors", str(path), UNFIT):
        unknown = model.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"{path} has {unknown[0]}, for which this model has no place: {UNFIT}")
    if pooling is not None:
        attach(model, pooling)
    return model.eval()
