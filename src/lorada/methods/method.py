"""What a method is: the fields of an entry of METHODS, the parts and the models it may name."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

Family = Literal["llama", "roberta", "deberta", "bart"]
Settings = dict[str, Any]

# What has to be imported is named, as ``module:name``: a list of methods needs neither torch nor
# PEFT, and ``load`` fetches what is used.
PARTS: dict[str, str] = {
    "lmam": "lorada.tuners:LmamConfig",
    "lora": "peft:LoraConfig",
    "bottleneck": "lorada.tuners:BottleneckConfig",
    "pa_attn": "lorada.tuners:BottleneckConfig",  # a second one, for stacks of two
    "parallel_ffn": "lorada.tuners:BottleneckConfig",  # likewise
    "prefix": "lorada.tuners:PrefixConfig",
    "quanta": "lorada.tuners:QuantaConfig",
    "omoe": "lorada.tuners:OmoeConfig",
    "sora": "lorada.tuners:SoraConfig",
    "lamda": "lorada.tuners:LamdaConfig",
    "shira": "peft:ShiraConfig",
    "adalora": "peft:AdaLoraConfig",
}

# The model whose names the columns of a kind of model have.
HOMES: dict[str, str] = {
    "llama": "llama", "roberta": "roberta", "deberta": "deberta-v2", "bart": "bart",
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One row of the paper.

    Attributes:
        summary: one line for ``lorada methods``.
        parts: part name → settings, by family, by model type (``mbart``) or by a key of
            ``MODELS``; empty for methods without an adapter.
        trainable: rule of parameter names for methods that select parameters of the base.
        trains: what the parameters of that rule are called.
        with_head: rule of the names that such a method trains with the task head, uncounted.
        callbacks: the Trainer callbacks of methods that change the procedure, by name.
        prepare: of a method that must see model and data, by name: called with both and
            ``config=``, the stack, which it returns ready to be placed.
        optimizer: maker of the optimizer of a method that has its own, by name: called with model
            and TrainingArguments.
        arguments: overrides of TrainingArguments.
        sizes: the settings, by part, that leave their part out when they are 0.
        formula: what it computes or how it updates, in one line of plain text.
        paper: link of the paper that the method is from.
        source: where the settings come from.
    """

    summary: str
    parts: dict[str, dict[str, Settings]] = field(default_factory=dict)
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


def load(name: str) -> Any:
    """What a ``module:name`` stands for."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
