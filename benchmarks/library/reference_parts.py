"""The parts of lorada as they are written into a model by hand, and with which settings."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from library import handwritten_methods as handwritten
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedModel

from lorada import (
    BottleneckConfig,
    LamdaConfig,
    LmamConfig,
    OmoeConfig,
    QuantaConfig,
    SoraConfig,
)
from lorada.tuners.gates import default_dims

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class HandwrittenPart:
    """How a part is written into a model without lorada.

    Attributes:
        words: what is written where.
        changes: what kind of module is changed: ``attention``, ``layer`` or ``linear``. Two parts
            that change the same kind are not written into one model.
        write: changes the model; gets it, the tensors of all parts and the config of this one.
        follows: the settings that ``write`` follows. With another one off its default, the part is
            something else than what is written.
    """

    words: str
    changes: str
    write: Callable[[PreTrainedModel, Tensors, Any], None]
    follows: tuple[str, ...]


def _write_adapter_ffn(model: PreTrainedModel, tensors: Tensors, part: BottleneckConfig) -> None:
    handwritten.adapter_ffn(model, tensors, scale=part.scale, dropout=part.dropout or 0.0)


def _write_omoe(model: PreTrainedModel, tensors: Tensors, part: OmoeConfig) -> None:
    scale = part.alpha / part.rank
    handwritten.omoe(model, tensors, scale=scale, dropout=part.dropout)


def _write_quanta(model: PreTrainedModel, tensors: Tensors, part: QuantaConfig) -> None:
    handwritten.quanta(model, tensors, default_dims(model.config.hidden_size))


_MAP = "the map in the attention's forward"

# By the class of the config, and by its ablation or its placement.
HANDWRITTEN: dict[tuple[type[PeftConfig], str | None], HandwrittenPart] = {
    (LmamConfig, None): HandwrittenPart(
        _MAP, "attention", lambda m, t, _: handwritten.lmam(m, t), ("rank", "length")
    ),
    (LmamConfig, "full_rank"): HandwrittenPart(
        _MAP, "attention", lambda m, t, _: handwritten.lmam(m, t), ("length",)
    ),
    (BottleneckConfig, "ffn"): HandwrittenPart(
        "the adapter in the layer's forward",
        "layer",
        _write_adapter_ffn,
        ("rank", "scale", "dropout"),
    ),
    (BottleneckConfig, "series"): HandwrittenPart(
        "the adapter in the linear's forward",
        "linear",
        lambda m, t, _: handwritten.series(m, t),
        ("rank",),
    ),
    (BottleneckConfig, "parallel"): HandwrittenPart(
        "the adapter in the linears' forward",
        "linear",
        lambda m, t, _: handwritten.parallel(m, t),
        ("rank",),
    ),
    (QuantaConfig, None): HandwrittenPart("movedim and matmul", "linear", _write_quanta, ()),
    (SoraConfig, None): HandwrittenPart(
        "the gates in the linears' forward",
        "linear",
        lambda m, t, part: handwritten.sora(m, t, alpha=part.alpha),
        ("rank", "alpha"),
    ),
    (LamdaConfig, None): HandwrittenPart(
        "W_res and three linears",
        "linear",
        lambda m, t, _: handwritten.lamda(m, t),
        ("rank", "ranks"),
    ),
    (OmoeConfig, None): HandwrittenPart(
        "a loop over experts", "linear", _write_omoe, ("rank", "alpha", "dropout", "experts")
    ),
}


def handwritten_part(part: PeftConfig) -> HandwrittenPart | None:
    """How a part of this kind is written by hand; None if it is not."""
    return HANDWRITTEN.get((type(part), _variant(part)[1]))


def follows_settings(form: HandwrittenPart, part: PeftConfig) -> bool:
    """Whether what is written by hand is this part, with all its settings."""
    name, value = _variant(part)
    default: Any = type(part)(**({name: value} if name else {}))
    free = {*form.follows, "target_modules", "task_type"}
    return all(
        getattr(part, field.name) == getattr(default, field.name)
        for field in fields(default)
        if field.name not in free
    )


def _variant(part: PeftConfig) -> tuple[str | None, str | None]:
    """The setting that makes another part of a config, and its value."""
    name = next((name for name in ("ablation", "placement") if hasattr(part, name)), None)
    return name, getattr(part, name) if name else None
