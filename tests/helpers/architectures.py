"""A tiny model of every architecture that the adapters are tested on, its inputs and its logits.

All have 2 layers, 4 heads (2 key/value heads where they group), hidden width 32 and 96 tokens.
"""

import functools

import torch
import transformers
from conftest import DECODER_SIZES, SIZES, SPECIAL, TINY, VOCAB, WINDOW, _build
from torch import Tensor, nn

TOKENS, FRAMES, IMAGE = 8, 16, 8  # of a text, of a spectrogram, pixels of an image's side

GEMMA_SIZES = {**DECODER_SIZES, "head_dim": 8}
GPT_SIZES = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.2,
    **SPECIAL,
}
BART_SIZES = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "init_std": 0.2,
    **SPECIAL,
    "decoder_start_token_id": 2,
}
# As DeBERTa-v3's published configs have it.
DEBERTA_V3 = {
    "relative_attention": True,
    "pos_att_type": "c2p|p2c",
    "share_att_key": True,
    "position_buckets": 4,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "max_position_embeddings": 64,
    "type_vocab_size": 0,
}

# Architecture -> its model and what its config says.
_MODELS = {
    "gemma": ("GemmaForCausalLM", GEMMA_SIZES),
    # Gemma 2 refuses sdpa, which has no softcap; its second layer sees everything.
    "gemma2": (
        "Gemma2ForCausalLM",
        GEMMA_SIZES
        | {"sliding_window": WINDOW, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}
        | {"attn_implementation": "eager"},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        GEMMA_SIZES
        | {"sliding_window": WINDOW, "query_pre_attn_scalar": 8}
        | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi": ("PhiForCausalLM", DECODER_SIZES),
    "phi3": ("Phi3ForCausalLM", DECODER_SIZES),
    "gpt2": ("GPT2LMHeadModel", GPT_SIZES),
    "gptj": ("GPTJForCausalLM", GPT_SIZES | {"rotary_dim": 4}),
    "gpt_neox": ("GPTNeoXForCausalLM", SIZES | {"max_position_embeddings": 64, "pad_token_id": 0}),
    "opt": (
        "OPTForCausalLM",
        {key: SIZES[key] for key in SIZES if key not in ("intermediate_size", "initializer_range")}
        | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2, "pad_token_id": 0},
    ),
    "xlm_roberta": ("XLMRobertaForMaskedLM", SIZES | {"max_position_embeddings": 64}),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"vocab_size": VOCAB, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
        | {"initializer_range": 0.2, "max_position_embeddings": 64},
    ),
    # The window counts both sides: a local token sees two to its left and two to its right.
    "modernbert": (
        "ModernBertForMaskedLM",
        SIZES
        | SPECIAL
        | {"max_position_embeddings": 64, "local_attention": 4}
        | {"layer_types": ["full_attention", "sliding_attention"]}
        | {"cls_token_id": 1, "sep_token_id": 2, "initializer_cutoff_factor": 3.0},
    ),
    "deberta": (
        "DebertaForMaskedLM",
        SIZES
        | {"relative_attention": True, "pos_att_type": "c2p|p2c", "max_position_embeddings": 64}
        | {"position_biased_input": False, "type_vocab_size": 0},
    ),
    "deberta_v2": ("DebertaV2ForMaskedLM", SIZES | DEBERTA_V3),
    "bart": ("BartForConditionalGeneration", BART_SIZES),
    "mbart": ("MBartForConditionalGeneration", BART_SIZES),
    "t5": (
        "T5ForConditionalGeneration",
        # Its weights are drawn at the scale of their fan-in already.
        {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2}
        | {"num_heads": 4, "relative_attention_num_buckets": 8, "initializer_factor": 1.5}
        | {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0},
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        BART_SIZES
        | {"num_mel_bins": 8, "max_source_positions": FRAMES // 2, "max_target_positions": 64},
    ),
    "vit": (
        "ViTForImageClassification",
        {key: SIZES[key] for key in SIZES if key != "vocab_size"}
        | {"image_size": IMAGE, "patch_size": 2, "num_labels": 5},
    ),
}


def _model(cls: str, sizes: dict, **options) -> nn.Module:
    model = getattr(transformers, cls)
    return _build(model, model.config_class, sizes, **options)


# Builders of tiny models in eval mode, the same weights on every call, as in ``conftest.TINY``.
# Both DeBERTa have only their own eager attention, Gemma 2 is built with it.
ARCHITECTURES = {
    **TINY,
    **{name: functools.partial(_model, *parts) for name, parts in _MODELS.items()},
}
ENCODER_DECODERS = ("bart", "mbart", "t5", "whisper")


def inputs(name: str) -> dict[str, Tensor]:
    """Three samples for an architecture; the second text is padded on the right."""
    if name == "vit":
        return {"pixel_values": torch.randn(3, 3, IMAGE, IMAGE)}
    mask = torch.ones(3, TOKENS, dtype=torch.long)
    mask[1, 5:] = 0
    tokens = torch.randint(5, VOCAB - 6, (3, TOKENS)) * mask
    if name == "whisper":
        return {"input_features": torch.randn(3, 8, FRAMES), "decoder_input_ids": tokens}
    batch = {"input_ids": tokens, "attention_mask": mask}
    if name in ENCODER_DECODERS:
        batch["decoder_input_ids"] = torch.randint(5, VOCAB - 6, (3, TOKENS - 2))
    return batch


def logits(model: nn.Module, **inputs: Tensor) -> Tensor:
    """The logits of a forward pass without gradients."""
    with torch.no_grad():
        return model(**inputs).logits
