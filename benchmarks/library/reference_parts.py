"""The parts of lorada as they are written into a model by hand, and with which settings."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from library import handwritten_methods as handwritten
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedModel

from lorada import BottleneckConfig, LamdaConfig, LmamConfig, OmoeConfig, QuantaConfig, SoraConfig
from lorada.tuners.quanta.gates import default_dims

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class HandwrittenPart:
    """How a part is written into a model without lorada.

    Attributes:
        words: what is written where.
        changes: what kind of module is changed: ``attention``, ``layer`` or ``linear``. Two parts
            that change the same kind are not written into one model.
        follows: the settings that ``write`` follows. A part with another setting off its default
            is not what is written.
        write: changes the model; gets it, the tensors of all parts and the config of this one.
    """

    words: str
    changes: str
    follows: tuple[str, ...]
    write: Callable[[PreTrainedModel, Tensors, Any], None]


MAP = "the map in the attention's forward"

# By the class of the config, and by its ablation or its placement.
HANDWRITTEN: dict[tuple[type[PeftConfig], str | None], HandwrittenPart] = {
    (LmamConfig, None): HandwrittenPart(
        MAP, "attention", ("rank", "length"), lambda m, t, part: handwritten.lmam(m, t)),
    (LmamConfig, "full_rank"): HandwrittenPart(
        MAP, "attention", ("length",), lambda m, t, part: handwritten.lmam(m, t)),
    (BottleneckConfig, "ffn"): HandwrittenPart(
        "the adapter in the layer's forward", "layer", ("rank", "scale", "dropout"),
        lambda m, t, part: handwritten.adapter_ffn(
            m, t, scale=part.scale, dropout=part.dropout or 0.0)),
    (BottleneckConfig, "series"): HandwrittenPart(
        "the adapter in the linear's forward", "linear", ("rank",),
        lambda m, t, part: handwritten.series(m, t)),
    (BottleneckConfig, "parallel"): HandwrittenPart(
        "the adapter in the linears' forward", "linear", ("rank",),
        lambda m, t, part: handwritten.parallel(m, t)),
    (QuantaConfig, None): HandwrittenPart(
        "movedim and matmul", "linear", (),
        lambda m, t, part: handwritten.quanta(m, t, default_dims(m.config.hidden_size))),
    (SoraConfig, None): HandwrittenPart(
        "the gates in the linears' forward", "linear", ("rank", "alpha"),
        lambda m, t, part: handwritten.sora(m, t, alpha=part.alpha)),
    (LamdaConfig, None): HandwrittenPart(
        "W_res and three linears", "linear", ("rank", "ranks"),
        lambda m, t, part: handwritten.lamda(m, t)),
    (OmoeConfig, None): HandwrittenPart(
        "a loop over experts", "linear", ("rank", "alpha", "dropout", "experts"),
        lambda m, t, part: handwritten.omoe(
            m, t, scale=part.alpha / part.rank, dropout=part.dropout)),
}  # fmt: skip


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
