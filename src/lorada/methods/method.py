"""``Method`` and ``Part``: what an entry of METHODS holds, and the parts that it may name.

Whatever has to be imported is given by name, as ``module:name``: a list of the methods needs
neither torch nor PEFT, and ``load`` fetches what is used.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

Family = Literal["llama", "roberta", "deberta", "bart"]
Settings = dict[str, Any]
Columns = dict[str, dict[str, Settings]]  # kind of model → part → settings


# The callback of methods that train with shifted sparse attention.
SHIFTED_ATTENTION = "lorada.methods.callbacks.longlora:ShiftedAttention"


def load(name: str) -> Any:
    """Import the object that a ``module:name`` stands for."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


@dataclass(frozen=True)
class Part:
    """A PEFT config that methods are made of, and what is known about it.

    Attributes:
        config: where its class is, as ``module:name``.
        mergeable: whether PEFT can merge it into the weights of the base model.
        starts_as_base: called with settings; whether a new part with them leaves the outputs of
            the base model as they are until it is trained.
    """

    config: str
    mergeable: bool = True
    starts_as_base: Callable[[Settings], bool] = lambda settings: True

    def config_class(self) -> Any:
        """The class of the config."""
        return load(self.config)


# A bottleneck adapter beside the FFN starts with U = 0; the other placements draw U at random.
_BOTTLENECK = Part(
    "lorada.tuners:BottleneckConfig",
    mergeable=False,
    starts_as_base=lambda settings: settings.get("placement", "ffn") == "ffn",
)
PARTS: dict[str, Part] = {
    "lmam": Part(
        "lorada.tuners:LmamConfig",
        mergeable=False,
        # A full-rank map starts at the product of its position embeddings.
        starts_as_base=lambda settings: settings.get("ablation") != "full_rank",
    ),
    "lora": Part("peft:LoraConfig"),
    "bottleneck": _BOTTLENECK,
    "pa_attn": _BOTTLENECK,  # a second one, for stacks of two
    "parallel_ffn": _BOTTLENECK,  # likewise
    # The keys of a prefix take their share of the attention from the first step on.
    "prefix": Part("lorada.tuners:PrefixConfig", mergeable=False, starts_as_base=lambda _: False),
    "quanta": Part("lorada.tuners:QuantaConfig"),
    "omoe": Part("lorada.tuners:OmoeConfig", mergeable=False),
    "sora": Part("lorada.tuners:SoraConfig"),
    "lamda": Part("lorada.tuners:LamdaConfig"),
    "shira": Part("peft:ShiraConfig"),
    "adalora": Part("peft:AdaLoraConfig"),
}


@dataclass(frozen=True)
class Unpublished:
    """Settings of a method for kinds of model that its paper has none for.

    Attributes:
        source: where they come from.
        parts: the settings of each part, by family; those of ``roberta`` are DeBERTa's too.
    """

    source: str = ""
    parts: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A row of the paper: its parts with their settings, or a rule of the parameters that train.

    Attributes:
        summary: one line for ``lorada methods``.
        parts: the settings of each part, for each kind of model (a family, or a model of
            ``model_settings.MODELS``); empty for a method without an adapter.
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
    parts: Columns = field(default_factory=dict)
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

    @property
    def mergeable(self) -> bool:
        """Whether its adapter can be merged into the weights; False for one without an adapter."""
        return bool(self.parts) and all(PARTS[part].mergeable for part in self.part_names)

    @property
    def starts_as_base(self) -> bool:
        """Whether the model computes what its base does until the method is trained."""
        return all(
            PARTS[part].starts_as_base(settings)
            for column in self.parts.values()
            for part, settings in column.items()
        )
