"""METHODS: the rows of the paper as data.

A method is a list of parts with their settings, one column for each kind of model. Combinations
(LoRaDA-A, LoRaDA-LA, MAM, ``NAME+lmam``) are longer lists and nothing else. ``plan`` makes a
method ready for a model.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import AdaLoraConfig, LoraConfig, PeftConfig, ShiraConfig
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainingArguments

from lorada.procedures import autopeft
from lorada.procedures.adalora import AdaLoraCallback
from lorada.procedures.galore import galore
from lorada.procedures.ist import ISTCallback
from lorada.procedures.lamda import LamdaCallback
from lorada.procedures.longlora import ShiftedAttention
from lorada.procedures.owlore import OwLoreCallback
from lorada.procedures.shira import snip
from lorada.procedures.sora import SoraCallback
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
    source: str = ""


MAP = {"rank": 2, "length": 128}
EVERY_FAMILY = ("llama", "roberta", "deberta", "bart")
LLM_LORA = {"target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]}
ENCODER_LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.1}
QUERY_VALUE = {
    "llama": ["q_proj", "v_proj"],
    "roberta": ["query", "value"],
    "deberta": ["query_proj", "value_proj"],
    "bart": ["q_proj", "v_proj"],
}


def _lorada_la(targets: list[str], lora_rank: int, adapter_rank: int) -> dict[str, Settings]:
    return {
        "lmam": MAP,
        "lora": {"r": lora_rank, "lora_alpha": 2 * lora_rank, "lora_dropout": 0.05,
                 "target_modules": targets},
        "bottleneck": {"rank": adapter_rank, "scale": 4.0, "dropout": 0.05},
    }  # fmt: skip


METHODS: dict[str, Method] = {
    "lmam": Method(
        "the low-rank attention map alone",
        {family: {"lmam": MAP} for family in EVERY_FAMILY},
        source="Table 19, LLaMA-7B",
    ),
    "fmam": Method(
        "the full-rank attention map alone (the ¬L ablation)",
        {family: {"lmam": {"length": 128, "ablation": "full_rank"}} for family in EVERY_FAMILY},
        source="Tables 3 and 9",
    ),
    "lora": Method(
        "LoRA",
        {
            "llama": {"lora": {"r": 32, "lora_alpha": 64, "lora_dropout": 0.05, **LLM_LORA}},
            "roberta": {"lora": {**ENCODER_LORA, "target_modules": QUERY_VALUE["roberta"]}},
            "deberta": {"lora": {**ENCODER_LORA, "target_modules": QUERY_VALUE["deberta"]}},
        },
        source="Tables 4 and 5",
    ),
    "dora": Method(
        "DoRA: LoRA with the magnitude of each output row learned apart",
        {
            "llama": {
                "lora": {
                    "r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "use_dora": True, **LLM_LORA,
                }
            },
        },
        source="Table 4",
    ),
    "adapter_ffn": Method(
        "Adapter-FFN: a scaled bottleneck adapter parallel to the FFN",
        {
            "llama": {"bottleneck": {"rank": 18, "scale": 4.0}},
            "roberta": {"bottleneck": {"rank": 32, "scale": 2.0, "dropout": 0.1}},
            "deberta": {"bottleneck": {"rank": 32, "scale": 2.0, "dropout": 0.1}},
            "bart": {"bottleneck": {"rank": 512, "scale": 4.0}},
        },
        source="Tables 5 and 10",
    ),
    "series": Method(
        "series adapter of LLM-Adapters, behind down_proj",
        {"llama": {"bottleneck": {"placement": "series", "rank": 256}}},
        source="Tables 4 and 18",
    ),
    "parallel": Method(
        "parallel adapter of LLM-Adapters, beside up_proj and down_proj",
        {"llama": {"bottleneck": {"placement": "parallel", "rank": 256}}},
        source="Tables 4 and 18",
    ),
    "houlsby": Method(
        "Houlsby's adapters, behind attention and FFN",
        {
            family: {"bottleneck": {"placement": "houlsby", "rank": 16}}
            for family in ("roberta", "deberta")
        },
        source="Table 5",
    ),
    "pfeiffer": Method(
        "Pfeiffer's adapter, behind the norm of the FFN",
        {
            "bart": {"bottleneck": {"placement": "pfeiffer", "rank": 600}},
            **{
                family: {"bottleneck": {"placement": "pfeiffer", "rank": 32}}
                for family in ("roberta", "deberta")
            },
        },
        source="Table 10; the rank for encoders is ours",
    ),
    "pa_attn_ffn": Method(
        "parallel adapters beside attention and FFN",
        {
            "bart": {
                "pa_attn": {"placement": "pa_attn", "rank": 30},
                "bottleneck": {"rank": 512, "scale": 4.0},
            },
        },
        source="Table 10",
    ),
    "prefix": Method(
        "prefix tuning",
        {
            "llama": {"prefix": {"length": 30}},
            "llama-13b": {"prefix": {"length": 10}},
            "roberta": {"prefix": {"length": 32, "projection": 800}},
            "bart": {"prefix": {"length": 30, "projection": 800}},
        },
        source="Tables 4, 5 and 10",
    ),
    "mam": Method(
        "MAM: prefix tuning with Adapter-FFN",
        {
            "roberta": {
                "prefix": {"length": 16, "projection": 800},
                "bottleneck": {"rank": 16, "scale": 2.0, "dropout": 0.1},
            },
            "bart": {
                "prefix": {"length": 30, "projection": 800},
                "bottleneck": {"rank": 512, "scale": 4.0},
            },
        },
        source="Tables 5 and 10",
    ),
    "prefix_lora": Method(
        "prefix tuning with LoRA on the FFN",
        {
            "bart": {
                "prefix": {"length": 30, "projection": 800},
                "lora": {"r": 102, "lora_alpha": 102, "target_modules": ["fc1", "fc2"]},
            },
        },
        source="Table 10",
    ),
    "autopeft": Method(
        "AutoPEFT: serial and parallel adapters and a prefix, in layers that `search` chooses",
        {
            "roberta": autopeft.blocks(12, 12, 6),
            "deberta": autopeft.blocks(15, 15, 0),  # which can have no prefix
            "bart": autopeft.blocks(256, 256, 32),
            "mbart": autopeft.blocks(0, 512, 32),  # which has no norm behind the FFN
        },
        arguments={
            "learning_rate": 1e-4, "num_train_epochs": 20, "per_device_train_batch_size": 32,
        },
        sizes=autopeft.SIZES,
        source="Tables 5 and 10; the sizes are ours, none was published",
    ),
    "quanta": Method(
        "QuanTA: a full-rank change from gates on pairs of tensor axes",
        {family: {"quanta": {"target_modules": QUERY_VALUE[family]}} for family in EVERY_FAMILY},
        source="Table 17",
    ),
    "ist": Method(
        "IST: LoRA whose layers train a quarter at a time, the dispensable ones less",
        {
            "llama": {"lora": {"r": 32, "lora_alpha": 64, "lora_dropout": 0.05, **LLM_LORA}},
            "llama3-8b": {
                "lora": {
                    "r": 32, "lora_alpha": 64, "lora_dropout": 0.05, "use_dora": True, **LLM_LORA,
                }
            },
        },
        callbacks=(ISTCallback,),
        arguments={"ddp_find_unused_parameters": True},
        source="Table 4",
    ),
    "owlore": Method(
        "OwLore: a few whole layers at a time, in GaLore's low-rank projection",
        trainable=r".",
        callbacks=(OwLoreCallback,),
        optimizer=galore,
        arguments={"learning_rate": 3e-4, "ddp_find_unused_parameters": True},
        source="Table 4",
    ),
    "owlore_full": Method(
        "OwLore-Full: a few whole layers at a time, with AdamW",
        trainable=r".",
        callbacks=(OwLoreCallback,),
        arguments={"learning_rate": 3e-4, "ddp_find_unused_parameters": True},
        source="Table 4",
    ),
    "adalora": Method(
        "AdaLoRA: LoRA whose ranks are pruned where they matter least",
        {
            "deberta": {
                "adalora": {
                    "init_r": 12, "target_r": 8, "lora_alpha": 16, "beta1": 0.85, "beta2": 0.85,
                    "orth_reg_weight": 0.1, "total_step": 10**9,
                    "target_modules": r".*encoder.*\.(query_proj|key_proj|value_proj|dense)$",
                },
            },
        },
        callbacks=(AdaLoraCallback,),
        source="Table 11; the steps come from the run",
    ),
    "sora": Method(
        "SoRA: LoRA with gates that training sets to zero",
        {family: {"sora": {"rank": 8, "alpha": 16}} for family in ("roberta", "deberta")},
        callbacks=(SoraCallback,),
        arguments={"weight_decay": 0.1, "warmup_steps": 0.06, "max_grad_norm": 0.1},
        source="Table 11",
    ),
    "shira": Method(
        "SHiRA-SNIP: a fixed, sparse set of the base's weights",
        {"llama": {"shira": {"r": 38, **LLM_LORA}}},
        prepare=snip,
        arguments={"learning_rate": 5e-4},
        source="Table 4",
    ),
    "lamda": Method(
        "LaMDA++: a small matrix between spectral projections, one of which freezes",
        {"llama": {"lamda": {"rank": 32, "ranks": "energy", **LLM_LORA}}},
        callbacks=(LamdaCallback,),
        source="Table 4",
    ),
    "omoe": Method(
        "OMoE-DoRA: two DoRA experts whose outputs are made orthogonal",
        {"llama": {"omoe": {"target_modules": ["gate_proj", "up_proj", "down_proj"]}}},
        source="Table 4; layout inferred from the count",
    ),
    "longlora": Method(
        "LongLoRA: LoRA, embeddings and norms, with shifted sparse attention in training",
        {
            "llama": {
                "lora": {
                    "r": 8, "lora_alpha": 16,
                    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
                    "modules_to_save": ["embed_tokens", "norm"],
                },
            },
        },
        callbacks=(ShiftedAttention,),
        arguments={"learning_rate": 2e-5},
        source="Table 7",
    ),
    "lorada_a": Method(
        "LoRaDA-A: the map with Adapter-FFN",
        {
            "llama": {
                "lmam": MAP,
                "bottleneck": {"rank": 18, "scale": 4.0},
            },
            "roberta": {
                "lmam": {"rank": 3, "length": 512, "heads": 3},
                "bottleneck": {"rank": 16, "scale": 2.0, "dropout": 0.1},
            },
            "deberta": {
                "lmam": {"rank": 2, "length": 512, "heads": 3},
                "bottleneck": {"rank": 16, "scale": 2.0, "dropout": 0.1},
            },
            "bart": {
                "lmam": {"rank": 22, "length": 256, "heads": 16, "stacks": ["encoder"]},
                "bottleneck": {"rank": 512, "scale": 4.0},
            },
            "mbart": {
                "lmam": {"rank": 64, "length": 128, "heads": 4, "stacks": ["encoder"]},
                "bottleneck": {"rank": 820, "scale": 4.0},
            },
        },
        source="Tables 15 and 16",
    ),
    "lorada_la": Method(
        "LoRaDA-LA: the map with LoRA and Adapter-FFN",
        {
            "llama": _lorada_la(["o_proj", "down_proj"], 1, 18),
            "llama2-7b": _lorada_la(["o_proj", "down_proj"], 1, 15),
            "llama3-8b": _lorada_la(["o_proj", "up_proj", "down_proj"], 2, 2),
            "llama-13b": _lorada_la(["o_proj", "down_proj"], 1, 12),
            "llama2-70b": _lorada_la(["o_proj", "up_proj", "down_proj"], 1, 7),
        },
        source="Table 19",
    ),
    "lorada_q": Method(
        "LoRaDA-Q: the map with QuanTA",
        {
            "llama": {
                "lmam": {"rank": 1, "length": 128},
                "quanta": {"target_modules": QUERY_VALUE["llama"]},
            },
        },
        source="Table 17",
    ),
    "bitfit": Method(
        "only the biases of the base, without its pooler",
        trainable=r"^(?!.*\bpooler\b).*\bbias$",
        source="Table 5",
    ),
    "full": Method("every parameter of the base", trainable=r".", source="Table 5"),
}  # fmt: skip
