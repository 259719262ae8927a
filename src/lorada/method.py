"""What a method is: the fields of an entry of METHODS, the parts and the models it may name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import AdaLoraConfig, LoraConfig, PeftConfig, ShiraConfig
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainingArguments

from lorada.tuners import (
    BottleneckConfig,
    LamdaConfig,
    LmamConfig,
    OmoeConfig,
    PrefixConfig,
    QuantaConfig,
    SoraConfig,
)

Family = Literal["llama", "roberta", "deberta", "bart"]
Settings = dict[str, Any]

PARTS: dict[str, type[PeftConfig]] = {
    "lmam": LmamConfig,
    "lora": LoraConfig,
    "bottleneck": BottleneckConfig,
    "pa_attn": BottleneckConfig,  # a second one, for stacks of two
    "parallel_ffn": BottleneckConfig,  # likewise
    "prefix": PrefixConfig,
    "quanta": QuantaConfig,
    "omoe": OmoeConfig,
    "sora": SoraConfig,
    "lamda": LamdaConfig,
    "shira": ShiraConfig,
    "adalora": AdaLoraConfig,
}

# Which column of the paper's tables a model takes that has none of its own.
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), "llama"),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta"), "roberta"),
    "deberta-v2": "deberta",
    **dict.fromkeys(("bart", "mbart"), "bart"),
}

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
        callbacks: makers of the Trainer callbacks of methods that change the procedure.
        prepare: of a method that must see model and data: called with both and ``config=``, the
            stack, which it returns ready to be placed.
        optimizer: maker of the optimizer of a method that has its own.
        arguments: overrides of TrainingArguments.
        sizes: the settings, by part, that leave their part out when they are 0.
        formula: what it computes or how it updates, in one line of plain text.
        paper: link of the paper that the method is from.
        source: where the settings come from.
    """

    summary: str
    parts: dict[str, dict[str, Settings]] = field(default_factory=dict)
    trainable: str | None = None
    callbacks: tuple[Callable[[], TrainerCallback], ...] = ()
    prepare: Callable[..., PeftConfig] | None = None
    optimizer: Callable[[nn.Module, TrainingArguments], Optimizer] | None = None
    arguments: Settings = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)
    formula: str = ""
    paper: str = ""
    source: str = ""
