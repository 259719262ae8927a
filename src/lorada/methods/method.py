"""``Method``, the class of the entries of METHODS, and the config class of each part of a method.

Classes and functions are given by name, as ``module:name``, and ``load`` imports those that are
used. So listing the methods needs neither torch nor PEFT.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from lorada.methods.peft_method import method_of_part
from lorada.methods.provenance import NOT_FROM_THE_PAPER, Printed
from lorada.support.tuner_names import TUNERS

if TYPE_CHECKING:
    from peft import PeftConfig

Family = Literal["llama", "roberta", "deberta", "bart"]
Settings = dict[str, Any]
PartsByModel = dict[str, dict[str, Settings]]  # kind of model → part → settings

EVERY_FAMILY: tuple[str, ...] = get_args(Family)
EVERYTHING = r"."  # the ``trainable`` of a method that trains every parameter
# The callback of methods that train with shifted sparse attention.
SHIFTED_ATTENTION = "lorada.methods.callbacks.longlora:ShiftedAttention"


def load(name: str) -> Any:
    """Import the object named ``module:name``."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


# The name of a part in METHODS → its config. Any other part is a tuner of PEFT: see ``part_class``.
PARTS: dict[str, str] = {
    **{part: f"lorada:{config}" for part, config in TUNERS.items()},
    "pa_attn": "lorada:BottleneckConfig",  # a second one, for stacks of two
    "parallel_ffn": "lorada:BottleneckConfig",  # likewise
    "lora": "peft:LoraConfig",
    "shira": "peft:ShiraConfig",
    "adalora": "peft:AdaLoraConfig",
}

RATE_RATIO = "loraplus_lr_ratio"  # LoRA+: how many times A's learning rate B trains at


def _refuse_bool(value: Any) -> Any:
    """Refuse true and false, which pydantic would take for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("it must be a number")
    return value


# Settings of a part that say how it trains, each with its type. The part's config has no such
# field, so an adapter is saved as PEFT alone would save it.
TRAINING_SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {
        RATE_RATIO: Annotated[
            float | None, BeforeValidator(_refuse_bool), Field(gt=0, allow_inf_nan=False)
        ]
    }
}


@cache
def peft_configs() -> "dict[str, type[PeftConfig]]":
    """The config classes of the installed PEFT, by the lower-case names of their types."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    configs = {}
    for peft_type in PeftType:
        if peft_type in PEFT_TYPE_TO_CONFIG_MAPPING:
            configs[peft_type.value.lower()] = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]
    return configs


def part_class(part: str) -> Any:
    """The config class of a part, given the part's name in PARTS or PEFT's name of a tuner."""
    if part in PARTS:
        return load(PARTS[part])
    outside = method_of_part(part)
    return peft_configs()[part] if outside is None else outside.config


def part_config(part: str, settings: Settings) -> Any:
    """The config of a part with these settings, without those that only say how it trains."""
    how_it_trains = TRAINING_SETTINGS.get(part, {})
    fields = {name: value for name, value in settings.items() if name not in how_it_trains}
    return part_class(part)(**fields)


@dataclass(frozen=True)
class Unpublished:
    """Settings of a method for kinds of model for which the paper gives none."""

    source: str = ""  # where they come from
    # Family → part → settings; those of ``roberta`` are used for DeBERTa too.
    parts: PartsByModel = field(default_factory=dict)
    # The kind of model whose names of matrices they use; None for those of their own.
    named_as: Family | None = None


@dataclass(frozen=True)
class Method:
    """A method: parts with their settings, or a rule for which parameters train."""

    summary: str  # one line for ``lorada methods``
    # Kind of model (a family, or a model of ``support.models.MODELS``) → part → settings; empty for
    # a method without an adapter.
    parts: PartsByModel = field(default_factory=dict)
    # Regex of the names of the base's parameters that train; None for an adapter.
    trainable: str | None = None
    trains: str = "parameters"  # what messages call those parameters
    # Regex of further parameters that train but, like the task head, do not count.
    with_head: str | None = None
    callbacks: tuple[str, ...] = ()  # Trainer callbacks that the method needs, as ``module:name``
    # ``module:name`` of a function that completes the config with the help of the model and its
    # data: called with model, batches and ``config=``, it returns the config.
    prepare: str | None = None
    # ``module:name`` of a function that freezes parameters of the adapter once it is placed.
    freeze: str | None = None
    # ``module:name`` of a function that makes the method's own optimizer from model and
    # TrainingArguments.
    optimizer: str | None = None
    arguments: Settings = field(default_factory=dict)  # TrainingArguments that the method changes
    formula: str = ""  # what it computes or how it updates, in one line of plain text
    when: str = ""  # when to try it, in one line of plain text
    paper: str = ""  # link to the paper of the method
    source: str = ""  # where the settings come from
    # The same by kind of model, where that differs; ``method_named`` fills in those of METHODS.
    sources: Mapping[str, str] = field(default_factory=dict)
    printed: Printed = field(default_factory=dict)  # what the source prints in place of settings
    name: str = ""  # the name it was looked up by; ``method_named`` fills it in
    # Settings for further kinds of model; ``method_named`` fills them in.
    unpublished: Unpublished = Unpublished()
    # The methods of a sum, such as ``ia3+lora``, in the order of their parts; empty for any other
    # method.
    summands: "tuple[Method, ...]" = ()

    def source_of(self, kind: str) -> str:
        """Where the settings for a kind of model are from, in words."""
        if kind in self.unpublished.parts and kind not in self.parts:
            return f"{NOT_FROM_THE_PAPER}: {self.unpublished.source}"
        return self.sources.get(kind, self.source)

    @property
    def part_names(self) -> list[str]:
        """Its parts, in the order in which they are stacked."""
        if self.summands:
            names: list[str] = []
            for method in self.summands:
                names += method.part_names
            return names
        # A method has the same parts for every kind of model.
        parts_by_model = self.parts or self.unpublished.parts
        return list(next(iter(parts_by_model.values()), {}))
