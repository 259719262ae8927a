"""The recipe's ``pooling``: which runs may have it, and where it is kept.

A run's adapter has it as a part. A fully trained model has no adapter, so one with nothing but the
pooling lies beside its weights. transformers places it when it loads the model from that folder.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from lorada.support.row_sources import HEADED, Form
from lorada.tuners import LoradaConfig
from lorada.tuners.pooling import CHILD, PoolingConfig, PoolingLayer, backbone_of, refuse_type

# ``base_model_name_or_path`` of an adapter that lies beside its base. From a local folder
# transformers loads the base beside it; from the hub, the one that is named here. No name fits: the
# folder may be moved, and no other folder has these weights.
BESIDE = "the base is beside this adapter: load a local copy of the folder"


def refuse_pooling(pooling: str, model_config: Any, form: Form, path: str) -> None:
    """Refuse a pooling where there is no head, or one that is not known.

    ``form`` is that of the training rows, which come from ``path``.
    """
    if form not in HEADED:
        raise ValueError(
            f"pooling={pooling} is what a head for classes or scores reads, and {path} has {form} "
            "rows, which need none: leave it out"
        )
    refuse_type(model_config.model_type)


def pooling_part(config: Any) -> str | None:
    """The pooling among the parts of an adapter; None if it has none."""
    parts = [part for part in getattr(config, "parts", [config]) if isinstance(part, PoolingConfig)]
    return parts[0].pooling if parts else None


def refuse_other(found: str | None, wanted: str | None, folder: Path) -> None:
    """Refuse saved weights whose head read something else than the recipe says."""
    if found != wanted:
        given = "no pooling" if wanted is None else f"pooling={wanted}"
        own = "none" if found is None else f"pooling={found}"
        raise ValueError(f"{folder} was trained with {own}, and the recipe has {given}")


def pooling_of(model: nn.Module) -> str | None:
    """The pooling that ``attach`` has put on a fully trained model; None for any other model."""
    if not isinstance(model, PreTrainedModel):
        return None
    layer = getattr(backbone_of(model), CHILD, None)
    return layer.configs["default"].pooling if isinstance(layer, PoolingLayer) else None


def save_beside(model: nn.Module, folder: Path) -> None:
    """Write the pooling of a fully trained model, if it has one, as an adapter in its folder.

    It has no tensors, as the trained head is in the weights of the model.
    """
    pooling = pooling_of(model)
    if pooling is None:
        return
    config = LoradaConfig(
        parts=[PoolingConfig(pooling=pooling)],
        base_model_name_or_path=BESIDE,
        base_model_type=str(model.config.model_type),  # type: ignore[union-attr]
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    save_file({}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
