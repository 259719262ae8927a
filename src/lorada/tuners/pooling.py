"""What the head of an encoder reads, as a part of an adapter without weights.

    mean:  p = Σ_t m_t h_t / Σ_t m_t        h (T, d) the last hidden states of a text,
    cls:   p = h_t of the first t, m_t = 1   m (T,) its attention mask

The last linear layer of the head reads dropout(p): logits = W dropout(p) + b. Whatever the model
has between the hidden states and that layer is passed over: BERT's and DeBERTa's poolers, and the
dense layer with tanh in RoBERTa's head. In most checkpoints it is untrained, and tanh would bound
the mean.

Shapes: B batch, T tokens, d width of the hidden states.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lorada.attention.hooks import FollowingHook
from lorada.tuners.base.part_config import LoradaPeftConfig, register
from lorada.tuners.base.tuner import AttachedLayer, AttachedModel

CHILD = "pooling"

# The type of a model → the module whose output becomes p. Empty: the vector that the backbone
# returns beside the hidden states. ``classifier`` is a head of several layers, of which only the
# last, ``out_proj``, runs on p.
READERS: dict[str, Literal["", "classifier", "pooler"]] = {
    "bert": "",
    "deberta": "pooler",
    "deberta-v2": "pooler",
    "roberta": "classifier",
    "xlm-roberta": "classifier",
}


@dataclass
class PoolingConfig(LoradaPeftConfig):
    """What the head reads instead of what the model gives it.

    Attributes:
        pooling: ``mean`` for the mean of the tokens' last hidden states, ``cls`` for that of the
            first token; padding is no token.
    """

    pooling: Literal["mean", "cls"] = field(default="mean")


def pool(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """One vector p (B, d) for each text, from its last hidden states (B, T, d).

    The mean is computed in fp32 or better, and hidden states of padding are never touched.

    Args:
        hidden: last hidden states, (B, T, d).
        mask: (B, T), not 0 where there is a token; None where all are tokens.
        pooling: ``mean`` or ``cls``.

    Raises:
        ValueError: for a mask of another shape.
    """
    if mask is None:
        return hidden.mean(1) if pooling == "mean" else hidden[:, 0]
    if mask.shape != hidden.shape[:2]:
        raise ValueError(
            f"pooling={pooling!r} needs an attention_mask of shape {tuple(hidden.shape[:2])}, not "
            f"{tuple(mask.shape)}"
        )
    real = mask.to(hidden.device) != 0
    if pooling == "cls":
        first = real.int().argmax(1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), first]
    wide = torch.promote_types(hidden.dtype, torch.float32)
    total = hidden.masked_fill(~real[..., None], 0).sum(1, dtype=wide)
    count = real.sum(1, keepdim=True).clamp(min=1)
    return (total / count).to(hidden.dtype)


class PoolingLayer(AttachedLayer):
    """A child of the backbone (``bert.pooling``) that has the pooling of any number of adapters.

    p goes with the hidden states to the module that reads them, as a further token behind the last.
    Nothing of a batch is kept here, so copies of a model that run side by side do not meet.
    """

    adapter_layer_names = ("kinds",)

    def __init__(self, host: nn.Module, parent: nn.Module) -> None:
        super().__init__(host, parent)
        # PEFT finds a layer's adapters by the keys of its modules, so each has an empty one.
        self.kinds = nn.ModuleDict()
        self._reader = reader_of(parent)
        self._handles = [host.register_forward_hook(self._after_backbone, with_kwargs=True)]
        if self._reader:
            hook = partial(nn.Module.register_forward_hook, hook=self._after_reader)
            self._handles.append(FollowingHook(parent, self._reader, hook, before=host))

    def update_layer(self, adapter_name: str, config: PoolingConfig, model: nn.Module) -> None:
        """Take the pooling of an adapter."""
        self.configs[adapter_name] = config
        self.kinds[adapter_name] = nn.Identity()

    def _after_backbone(self, host: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Give p to what reads the output of the backbone."""
        names = self.active_here()
        if not names:
            return None
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        hidden = output[0]
        pooled = pool(hidden, mask, self.configs[names[-1]].pooling)
        if not self._reader:
            return _replaced(output, 1, pooled)
        return _replaced(output, 0, torch.cat([hidden, pooled[:, None]], 1))

    def _after_reader(self, reader: Any, args: Any, output: Tensor) -> Tensor | None:
        """What the reader gives for p, in place of its output for the hidden states."""
        if not self.active_here():
            return None
        pooled: Tensor = args[0][:, -1]
        if self._reader == "classifier":
            pooled = reader.out_proj(reader.dropout(pooled))
        return pooled


def _replaced(output: Any, index: int, value: Tensor) -> Any:
    """The output of a backbone, a tuple or a dictionary in order, with one tensor replaced."""
    if isinstance(output, tuple):
        return (*output[:index], value, *output[index + 1 :])
    output[list(output)[index]] = value
    return output


class PoolingModel(AttachedModel):
    """Puts the pooling of a ``PoolingConfig`` on the backbone of a model with a head."""

    child = CHILD
    tuner_layer_cls = PoolingLayer

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        reader_of(self.model)
        peft_config.target_modules = None  # not a field: there is nothing to choose
        return peft_config

    def _check_target_module_exists(self, peft_config: Any, key: str) -> bool:  # type: ignore[override]
        return self.model.get_submodule(key) is backbone_of(self.model)


def backbone_of(model: nn.Module) -> nn.Module | None:
    """The module of a model that its head reads; None for a model without a head."""
    name = getattr(model, "base_model_prefix", "") or "-"  # no attribute is called so
    backbone = getattr(model, name, None)
    return backbone if isinstance(backbone, nn.Module) else None


def reader_of(model: nn.Module) -> Literal["", "classifier", "pooler"]:
    """The entry of ``READERS`` for a model.

    A model that has none is refused.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    refuse_type(model_type)
    reader = READERS[model_type]
    backbone = backbone_of(model)
    if backbone is None or not _has_head(model, backbone, reader):
        raise ValueError(
            f"pooling: {type(model).__name__} has no head for classes or scores as transformers "
            f"builds it for {model_type}: load the model with AutoModelForSequenceClassification"
        )
    return reader


def _has_head(model: nn.Module, backbone: nn.Module, reader: str) -> bool:
    """Whether a model has the reader of its type, and behind it a linear layer."""
    head: Any = getattr(model, "classifier", None)
    last = getattr(head, "out_proj", None) if reader == "classifier" else head
    # Asked like this, a linear layer may be wrapped by parts of other adapters.
    if not hasattr(last, "out_features"):
        return False
    if reader == "":  # the head reads what the pooler in the backbone returns
        return getattr(backbone, "pooler", None) is not None
    return getattr(model, reader, None) is not None


def refuse_type(model_type: str) -> None:
    """Refuse a type of model whose head is not known."""
    if model_type not in READERS:
        raise ValueError(
            f"pooling is for the heads of {', '.join(READERS)}, not of {model_type}: leave it out"
        )


def attach(model: nn.Module, pooling: Any) -> PoolingLayer:
    """Put a pooling on a model that has no adapter."""
    host: Any = backbone_of(model)
    layer = PoolingLayer(host, model)
    host.add_module(CHILD, layer)
    layer.update_layer("default", PoolingConfig(pooling=pooling), model)
    layer.set_adapter(["default"])
    return layer


@contextmanager
def attached(model: nn.Module, pooling: Any) -> Iterator[None]:
    """Put a pooling on a model in a ``with`` block; None for none."""
    layer = None if pooling is None else attach(model, pooling)
    try:
        yield
    finally:
        if layer is not None:
            layer.detach_from_host()
            delattr(layer.host, CHILD)


register("POOLING", PoolingConfig, PoolingModel)
