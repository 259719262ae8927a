"""Where the settings of each method are from, by kind of model, and what the paper prints instead.

``method_named`` puts both beside a method's settings, so that ``lorada methods``, ``lorada params``
and each run's ``result.json`` say the same.
"""

from collections.abc import Mapping
from typing import Any

NOT_FROM_THE_PAPER = "not from the paper"  # reports look for these words
NOT_STATED = "not stated"  # of a setting that the paper leaves open
OF_ALL_OTHERS = "that of all other parameters"

Printed = Mapping[str, Mapping[str, Mapping[str, Any]]]  # kind of model → part → printed settings

# What a map takes where METHODS leaves it open: the defaults of LmamConfig, which a test compares.
MAP_DEFAULTS = {"inverse_scale": 1.0, "map_learning_rate": "0.4x", "init": "zero"}


def _ours(source: str) -> str:
    return f"{NOT_FROM_THE_PAPER}: {source}"


def _printed_map(inverse_scale: object, **others: object) -> dict[str, dict[str, object]]:
    """What the paper prints of a map that takes ``MAP_DEFAULTS`` here."""
    return {
        "lmam": {
            "inverse_scale": inverse_scale, "map_learning_rate": OF_ALL_OTHERS,
            "init": NOT_STATED, **others,
        },
    }  # fmt: skip


_TABLE_19 = "Table 19, LLaMA-7B"
_AS_ON_ROBERTA = _ours("as on RoBERTa in Table 5")
_AUTOPEFT = _ours("our choice of sizes at the printed share, as none was published")

# Method → kind of model → where its settings for that kind are from.
SOURCES: dict[str, dict[str, str]] = {
    "lmam": {
        "llama": _TABLE_19,
        **dict.fromkeys(("roberta", "deberta", "bart"), _ours(f"rank and length of {_TABLE_19}")),
    },
    "fmam": {
        "llama": "Table 9 (¬L), with the length of Table 19",
        **dict.fromkeys(("roberta", "deberta", "bart"), _ours("the length of Table 19")),
    },
    "lora": {
        "llama": "Table 4: the rank of its text; all else as in LLM-Adapters' scripts",
        "roberta": "Table 5: a size of its share; α and dropout of He et al.'s script",
        "deberta": _AS_ON_ROBERTA,
        "bart": "Table 10: its rank; α and dropout of He et al.",
    },
    "loraplus": dict.fromkeys(
        ("llama", "roberta", "deberta", "bart"),
        _ours("as LoRA in Tables 4, 5 and 10, with the ratio that LoRA+'s authors advise"),
    ),
    "lorafa": dict.fromkeys(
        ("llama", "roberta", "deberta", "bart"), _ours("as LoRA in Tables 4, 5 and 10")
    ),
    "dora": {"llama": "Table 4: its rank 16; all else as in DoRA's scripts"},
    "adapter_ffn": {
        "llama": _ours(f"the adapter of LoRaDA-LA in {_TABLE_19}"),
        "roberta": "Table 5: the rank of its share; scale and dropout of Table 16",
        "deberta": _AS_ON_ROBERTA,
        "bart": "Table 15: the adapter of LoRaDA-A for XSum",
    },
    "series": {"llama": "Table 4: the size of LLM-Adapters, which gives its share"},
    "parallel": {"llama": "Table 4: the size of LLM-Adapters, which gives its share"},
    "houlsby": {"roberta": "Table 5: the rank of its share", "deberta": _AS_ON_ROBERTA},
    "pfeiffer": {
        "bart": "Table 10: its rank",
        **dict.fromkeys(("roberta", "deberta"), _ours("our choice of rank")),
    },
    "pa_attn_ffn": {"bart": "Table 10: sizes of He et al., which give its share"},
    "prefix": {
        **dict.fromkeys(("llama", "llama-13b"), "Table 4: the length of its share"),
        "roberta": "Table 5: the length of its share; the network of He et al.",
        "deberta": _AS_ON_ROBERTA,
        "bart": "Table 10: the length of He et al.; their network",
    },
    "mam": {
        "roberta": "Table 5: sizes of its share; scale and dropout of Table 16",
        "deberta": _AS_ON_ROBERTA,
        "bart": "Table 10: sizes of He et al., which give its share",
    },
    "prefix_lora": {"bart": "Table 10; α beside the prefix is our choice, that of LoRA (ffn)"},
    "autopeft": dict.fromkeys(("roberta", "deberta", "bart", "mbart"), _AUTOPEFT),
    "quanta": {
        "llama": "Table 17",
        **dict.fromkeys(
            ("roberta", "deberta", "bart"), _ours("on query and value, as in Table 17")
        ),
    },
    "ist": {
        "llama": "Table 4: LoRA's settings in it",
        "llama3-8b": "Table 4: LoRA's settings in it, with DoRA",
    },
    "adalora": {"deberta": "Table 11: AdaLoRA's scripts, whose phases are shares of the run here"},
    "sora": {
        "deberta": "Table 11: SoRA's publication",
        "roberta": _ours("as in Table 11, on DeBERTa"),
    },
    "shira": {"llama": "Table 4: the rank that gives its share"},
    "lamda": {"llama": "Table 4: ranks inferred from LaMDA's text; all else our reading of it"},
    "omoe": {"llama": "Table 4: the layers are inferred from its share"},
    "longlora": {"llama": "Table 7: LongLoRA's own"},
    "lorada_a": {
        "llama": _ours(f"map and adapter of LoRaDA-LA in {_TABLE_19}"),
        "roberta": "Table 16; the map's length is that of MNLI, SST-2, CoLA and RTE",
        "deberta": "Table 16 with rank 2, as A.5 says; the text of Table 11 has length 128",
        "bart": "Table 15, XSum",
        "mbart": "Table 15, MT",
    },
    "lorada_la": {
        "llama": _TABLE_19,
        "llama2-7b": "Table 19, LLaMA2-7B",
        "llama3-8b": "Table 19, LLaMA3-8B",
        "llama-13b": "Table 19, LLaMA-13B",
        "llama2-70b": "Table 19, LLaMA2-70B",
    },
    "lorada_q": {"llama": "Table 17"},
}

_LLAMA_MAP = _printed_map(4096 * 600)
_ENCODER_MAP = _printed_map(255)

# Method → kind of model → part → what the source prints where the settings here are others.
PRINTED: dict[str, Printed] = {
    "lmam": dict.fromkeys(("llama", "roberta", "deberta", "bart"), _LLAMA_MAP),
    "fmam": dict.fromkeys(("llama", "roberta", "deberta", "bart"), _LLAMA_MAP),
    "lorada_a": {
        "llama": _LLAMA_MAP,
        "roberta": _ENCODER_MAP,
        "deberta": _ENCODER_MAP,
        "bart": _printed_map(1.0),
        # 16 heads give 6.65 % of mBART, 4 the printed 6.7.
        "mbart": _printed_map(1.0, heads=16),
    },
    "lorada_la": {
        "llama": _LLAMA_MAP,
        "llama2-7b": _LLAMA_MAP,
        "llama3-8b": _printed_map(4096 * 1200),
        "llama-13b": _printed_map(5120 * 600),
        "llama2-70b": _printed_map(8192 * 1600),
        "roberta": _ENCODER_MAP,
        "bart": _printed_map(1.0),
    },
    "lorada_q": {
        "llama": _printed_map(NOT_STATED),
        "roberta": _ENCODER_MAP,
        "bart": _printed_map(1.0),
    },
}
