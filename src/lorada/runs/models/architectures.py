"""The models of the paper by name, as configs without weights, for counting parameters.

Sizes as in the models' published configs. Where the config class of transformers already has a
value as its default, it is left out.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LLAMA_7B: dict[str, Any] = {"model_type": "llama"}  # the class's defaults are its sizes
MBART_SIZES: dict[str, Any] = {
    "d_model": 1024,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama-7b": LLAMA_7B,
    "llama-13b": {
        **LLAMA_7B,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "llama2-7b": {**LLAMA_7B, "max_position_embeddings": 4096},
    "llama2-70b": {
        **LLAMA_7B,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
    },
    "llama3-8b": {
        **LLAMA_7B,
        "vocab_size": 128256,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
    "roberta-base": {
        "model_type": "roberta",
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
    "deberta-v3-base": {
        "model_type": "deberta-v2",
        "vocab_size": 128100,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "bart-large": {"model_type": "bart", "vocab_size": 50265, **MBART_SIZES},
    "mbart-large": {"model_type": "mbart", "vocab_size": 250027, **MBART_SIZES},
}


def named_config(name: str) -> "PretrainedConfig":
    """The config of a name in ``ARCHITECTURES``."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**ARCHITECTURES[name])
