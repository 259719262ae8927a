"""What a method is: the fields of an entry of METHODS, the parts and the models it may name."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from lorada.tuners import TUNERS

Family = Literal["llama", "roberta", "deberta", "bart"]
Settings = dict[str, Any]

# The name of a part in a method → its config. What has to be imported is named, as ``module:name``:
# a list of methods needs neither torch nor PEFT, and ``load`` fetches what is used.
PARTS: dict[str, str] = {
    **{part: f"lorada:{config}" for part, (config, _) in TUNERS.items()},
    "pa_attn": "lorada:BottleneckConfig",  # a second one, for stacks of two
    "parallel_ffn": "lorada:BottleneckConfig",  # likewise
    "lora": "peft:LoraConfig",
    "shira": "peft:ShiraConfig",
    "adalora": "peft:AdaLoraConfig",
}

# The model whose names the columns of a kind of model have.
HOMES: dict[Family, str] = {
    "llama": "llama", "roberta": "roberta", "deberta": "deberta-v2", "bart": "bart",
}  # fmt: skip

# Models with columns of their own, by what their configs say.
COLUMNS: dict[str, Settings] = {
    "llama2-7b": {"model_type": "llama", "hidden_size": 4096, "vocab_size": 32000,
                  "max_position_embeddings": 4096},
    "llama3-8b": {"model_type": "llama", "hidden_size": 4096, "vocab_size": 128256},
    "llama-13b": {"model_type": "llama", "hidden_size": 5120, "num_hidden_layers": 40},
    "llama2-70b": {"model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80},
    "mbart": {"model_type": "mbart"},
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One row of the paper.

    Attributes:
        summary: one line for ``lorada methods``.
        parts: part name → settings, by family or by a key of ``COLUMNS``; empty for methods
            without an adapter.
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
