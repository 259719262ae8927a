"""Local model folders and row files for tests of what a user runs."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

ROWS = [{"prompt": f"{a} + {b} =", "response": f" {a + b}"} for a in range(6) for b in range(6)]
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<e>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, with three special tokens and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<p>", "<s>", "<e>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<p>", bos_token="<s>", eos_token="<e>"
    )
    fast.chat_template = CHAT
    return fast


def llama_folder(path: Path, **changes) -> Path:
    """A tiny LLaMA with its tokenizer, as a local folder."""
    tokenizer = byte_tokenizer()
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "attention_dropout": 0.1,
    }  # fmt: skip
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2,
        **{**sizes, **changes},
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def bert_folder(path: Path) -> Path:
    """A tiny BERT with its tokenizer, as a local folder."""
    tokenizer = byte_tokenizer()
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def bart_folder(path: Path) -> Path:
    """A tiny BART with its tokenizer, which ends every text as BART's head needs it."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <e>", special_tokens=[("<e>", 2)]
    )
    set_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    BartForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def rows_file(path: Path, rows: list[dict] | None = None) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROWS if rows is None else rows)))
    return path
