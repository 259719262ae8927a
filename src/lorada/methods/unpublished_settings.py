"""Settings that are not from the paper, for kinds of model on which it has none for a method.

They are taken from the method's settings for another kind of model, or from another method with
the same part on this kind. Each entry says which. DeBERTa takes the settings of ``roberta``.
"""

from lorada.methods.autopeft import parts_of_size
from lorada.methods.method import PartsByModel, Settings, Unpublished
from lorada.methods.table import FFN_LORA, METHODS


def _of(method: str, model: str, part: str, **changes: object) -> Settings:
    """The paper's settings of a part of a method, with changes."""
    return {**METHODS[method].parts[model][part], **changes}


_LAYER = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
_ENCODER_FFN = ["intermediate.dense", "output.dense"]
_LORA = {  # the matrices of LLM_LORA
    "roberta": ["query", "key", "value", *_ENCODER_FFN],
    "bart": ["q_proj", "k_proj", "v_proj", "fc1", "fc2"],
}
_LLAMA_LAYER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_BART_LAYER = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
_LLAMA_FFN = ["up_proj", "down_proj"]
_BESIDE_FFN = _of("lorada_a", "llama", "bottleneck")
_LLAMA_PREFIX = _of("prefix", "llama", "prefix")


def _every(part: str, **ranks: int) -> PartsByModel:
    """A bottleneck adapter with one placement, and a rank for each kind of model."""
    return {kind: {"bottleneck": {"placement": part, "rank": rank}} for kind, rank in ranks.items()}


UNPUBLISHED: dict[str, Unpublished] = {
    "dora": Unpublished(
        "the settings of LoRA in Tables 5 and 10",
        {kind: {"lora": _of("lora", kind, "lora", use_dora=True)} for kind in ("roberta", "bart")},
    ),
    "series": Unpublished(
        "the ranks of Adapter-FFN in Tables 5 and 10", _every("series", roberta=32, bart=512)
    ),
    "parallel": Unpublished(
        "our choice of ranks; on BART that of LoRA(ffn) in Table 10",
        _every("parallel", roberta=16, bart=102),
    ),
    "houlsby": Unpublished(
        "the rank of Table 5, on BART one that gives the size of Pfeiffer's adapter; in a pre-LN "
        "layer y + A(y) after attention and FFN, before the residual sum",
        _every("houlsby", llama=16, bart=240),
    ),
    "pfeiffer": Unpublished(
        "our choice of rank; after the residual sum, as in He et al.'s code for mBART",
        _every("pfeiffer", llama=32),
    ),
    "pa_attn_ffn": Unpublished(
        "as in Table 10; the adapter beside LLaMA's FFN as in Table 19",
        {
            "llama": {
                "pa_attn": _of("pa_attn_ffn", "bart", "pa_attn"), "bottleneck": _BESIDE_FFN
            },
            "roberta": METHODS["pa_attn_ffn"].parts["bart"],
        },
    ),
    "mam": Unpublished(
        "the prefix of Table 4, the adapter of Table 19",
        {"llama": {"prefix": _LLAMA_PREFIX, "bottleneck": _BESIDE_FFN}},
    ),
    "prefix_lora": Unpublished(
        "as in Table 10; on LLaMA the prefix and the rank of Table 4",
        {
            "llama": {
                "prefix": _LLAMA_PREFIX,
                "lora": _of("lora", "llama", "lora", target_modules=_LLAMA_FFN),
            },
            "roberta": {
                "prefix": _of("prefix_lora", "bart", "prefix"),
                "lora": {**FFN_LORA, "target_modules": _ENCODER_FFN},
            },
        },
    ),
    "autopeft": Unpublished(
        "our choice of sizes, as for encoders; the serial adapter as Pfeiffer's in a pre-LN layer",
        {"llama": parts_of_size(12, 12, 6)},
    ),
    "ist": Unpublished(
        "the settings of LoRA in Tables 5 and 10",
        {kind: METHODS["lora"].parts[kind] for kind in ("roberta", "bart")},
    ),
    "adalora": Unpublished(
        "as in Table 11, on DeBERTa",
        {
            kind: {"adalora": _of("adalora", "deberta", "adalora", target_modules=names)}
            for kind, names in (
                ("llama", _LLAMA_LAYER), ("roberta", _LAYER), ("bart", _BART_LAYER)
            )
        },
    ),
    "sora": Unpublished(
        "as in Table 11, on DeBERTa",
        dict.fromkeys(("llama", "bart"), METHODS["sora"].parts["deberta"]),
    ),
    "shira": Unpublished(
        "our choice of rank, about 1 % of the weights as in Table 4",
        {kind: {"shira": {"r": 8, "target_modules": names}} for kind, names in _LORA.items()},
    ),
    "lamda": Unpublished(
        "as in Table 4, on LLaMA",
        {
            kind: {"lamda": _of("lamda", "llama", "lamda", target_modules=names)}
            for kind, names in _LORA.items()
        },
    ),
    "omoe": Unpublished(
        "as in Table 4, on LLaMA",
        {
            kind: {"omoe": {"target_modules": names}}
            for kind, names in (("roberta", _ENCODER_FFN), ("bart", ["fc1", "fc2"]))
        },
    ),
    "longlora": Unpublished(
        "as in Table 7, on LLaMA; the groups of an encoder have no causal mask",
        {
            kind: {
                "lora": _of(
                    "longlora", "llama", "lora", target_modules=names[:4], modules_to_save=whole,
                ),
            }
            for kind, names, whole in (
                ("roberta", _LAYER, ["word_embeddings", "LayerNorm"]),
                ("bart", _BART_LAYER, ["embed_tokens", "layer_norm", "layernorm_embedding"]),
            )
        },
    ),
    "lorada_la": Unpublished(
        "map and adapter of Tables 15 and 16, LoRA of Table 19",
        {
            kind: {
                "lmam": _of("lorada_a", kind, "lmam"),
                "lora": _of("lorada_la", "llama", "lora", target_modules=names),
                "bottleneck": _of("lorada_a", kind, "bottleneck"),
            }
            for kind, names in (
                ("roberta", ["attention.output.dense", "output.dense"]),
                ("bart", ["out_proj", "fc2"]),
            )
        },
    ),
    "lorada_q": Unpublished(
        "the map of Tables 15 and 16, QuanTA on query and value as in Table 17",
        {
            kind: {"lmam": _of("lorada_a", kind, "lmam"), "quanta": _of("quanta", kind, "quanta")}
            for kind in ("roberta", "bart")
        },
    ),
}  # fmt: skip
