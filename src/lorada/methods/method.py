"""What an entry of METHODS holds, and the parts that it may name.

Whatever has to be imported is given by name, as ``module:name``: a list of the methods needs
neither torch nor PEFT, and ``load`` fetches what is used.
"""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from lorada.tuners import TUNERS

Family = Literal["llama", "roberta", "deberta", "bart"]
Settings = dict[str, Any]
PartsByModel = dict[str, dict[str, Settings]]  # kind of model → part → settings

# The callback of methods that train with shifted sparse attention.
SHIFTED_ATTENTION = "lorada.methods.callbacks.longlora:ShiftedAttention"


def load(name: str) -> Any:
    """Import the object that a ``module:name`` stands for."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


# The name of a part in a method → its config.
PARTS: dict[str, str] = {
    **{part: f"lorada:{config}" for part, (config, _) in TUNERS.items()},
    "pa_attn": "lorada:BottleneckConfig",  # a second one, for stacks of two
    "parallel_ffn": "lorada:BottleneckConfig",  # likewise
    "lora": "peft:LoraConfig",
    "shira": "peft:ShiraConfig",
    "adalora": "peft:AdaLoraConfig",
}


@dataclass(frozen=True)
class Unpublished:
    """Settings of a method for kinds of model that its paper has none for.

    Attributes:
        source: where they come from.
        parts: the settings of each part, by family; those of ``roberta`` are DeBERTa's too.
    """

    source: str = ""
    parts: PartsByModel = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A row of the paper: its parts with their settings, or a rule of the parameters that train.

    Attributes:
        summary: one line for ``lorada methods``.
        parts: the settings of each part, for each kind of model (a family, or a model of
            ``support.models.MODELS``); empty for a method without an adapter.
        trainable: regex of the names of the base's parameters that train; None for an adapter.
        trains: what the parameters of that regex are called.
        with_head: regex of the names that such a method trains with the task head, uncounted.
        callbacks: Trainer callbacks of a method that changes the training, as ``module:name``.
        prepare: function of a method that must see model and data first, as ``module:name``: called
            with both and ``config=``, the stack, which it returns ready to be placed.
        optimizer: function that makes the method's own optimizer, as ``module:name``: called with
            model and TrainingArguments.
        arguments: settings of TrainingArguments that the method changes.
        sizes: part → its setting that leaves the part out when it is 0.
        formula: what it computes or how it updates, in one line of plain text.
        paper: link to the paper of the method.
        source: where the settings come from.
        name: the name it was looked up by, which ``method_named`` fills in.
        unpublished: settings for further kinds of model; for the methods of
            ``unpublished_settings``, ``method_named`` fills them in.
    """

    summary: str
    parts: PartsByModel = field(default_factory=dict)
    trainable: str | None = None
    trains: str = "parameters"
    with_head: str | None = None
    callbacks: tuple[str, ...] = ()
    prepare: str | None = None
    optimizer: str | None = None
    arguments: Settings = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)
    formula: str = ""
    paper: str = ""
    source: str = ""
    name: str = ""
    unpublished: Unpublished = Unpublished()

    @property
    def part_names(self) -> list[str]:
        """Its parts, in the order in which they are stacked."""
        return list(next(iter(self.parts.values()), {}))
