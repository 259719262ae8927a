"""Local model folders and row files for tests of what a user runs."""

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BartForConditionalGeneration,
    BertForSequenceClassification,
    LlamaForCausalLM,
    MBartForConditionalGeneration,
    MBartTokenizer,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5ForConditionalGeneration,
    set_seed,
)

ROWS = [{"prompt": f"{a} + {b} =", "response": f" {a + b}"} for a in range(6) for b in range(6)]


def chats(*turns: tuple[str, str]) -> list[dict]:
    """Rows of what a user says and an assistant answers."""
    return [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in turns
    ]


TURNS = chats(("hi", "ho"), ("1", "2"), ("no", "yes"), ("up", "down"))
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<e>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def adapter_weights(run: Path) -> dict[str, Tensor]:
    """The tensors of a run's adapter."""
    return load_file(run / "adapter" / "adapter_model.safetensors")


def refused(message: str, act: Callable[[], object], kind: type[Exception] = ValueError) -> None:
    """Check that something ends in an error of one line."""
    with pytest.raises(kind, match=message) as error:
        act()
    assert "\n" not in str(error.value)


def byte_tokenizer(*, ends: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, with special tokens and a chat template; ``ends`` ends every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<p>", "<s>", "<e>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <e>", special_tokens=[("<e>", 2)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<p>", bos_token="<s>", eos_token="<e>"
    )
    fast.chat_template = CHAT
    return fast


SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {**SIZES, **SPECIAL, "num_key_value_heads": 2, "attention_dropout": 0.1}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "dropout": 0.1,
    "max_position_embeddings": 64, "forced_eos_token_id": 2,
}  # fmt: skip


def saved(
    path: Path, model: type[PreTrainedModel], tokenizer: PreTrainedTokenizerBase, settings: dict
) -> Path:
    """A new model and its tokenizer, as a local folder."""
    set_seed(0)
    config = model.config_class(vocab_size=len(tokenizer), **settings)
    model(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def llama_folder(path: Path, **changes) -> Path:
    """A tiny LLaMA with its tokenizer, as a local folder."""
    return saved(path, LlamaForCausalLM, byte_tokenizer(), {**LLAMA, **changes})


def mistral_folder(path: Path) -> Path:
    """The same as a Mistral, which sees 4 tokens."""
    return saved(path, MistralForCausalLM, byte_tokenizer(), {**LLAMA, "sliding_window": 4})


def bert_folder(path: Path, **changes) -> Path:
    """A tiny BERT with its tokenizer, as a local folder."""
    settings = {**SIZES, "pad_token_id": 0, **changes}
    return saved(path, BertForSequenceClassification, byte_tokenizer(), settings)


def bart_folder(path: Path, *, ends: bool = False, **changes) -> Path:
    """A tiny BART with its tokenizer, which may end every text as BART's head needs it."""
    settings = {**BART, **SPECIAL, "decoder_start_token_id": 2, **changes}
    return saved(path, BartForConditionalGeneration, byte_tokenizer(ends=ends), settings)


def t5_folder(path: Path) -> Path:
    """A tiny T5 with a tokenizer that ends every text, as a local folder."""
    settings = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, **SPECIAL}
    settings["decoder_start_token_id"] = 0
    return saved(path, T5ForConditionalGeneration, byte_tokenizer(ends=True), settings)


def mbart_folder(path: Path) -> Path:
    """A tiny mBART, whose tokenizer knows letters and mBART's languages, as a local folder."""
    letters = "abcdefghijklmnopqrstuvwxyzăâîșț0123456789+=.,▁"
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocab = [*((token, 0.0) for token in special), *((letter, -2.0) for letter in letters)]
    tokenizer = MBartTokenizer(vocab=[*vocab, ("<mask>", 0.0)])
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": None}
    return saved(path, MBartForConditionalGeneration, tokenizer, {**BART, **ids})


def rows_file(path: Path, rows: list[dict] | None = None) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROWS if rows is None else rows)))
    return path


def split_file(folder: Path, split: str, rows: list[dict]) -> Path:
    """A split of a local data folder, as benchmarks have it: ``folder/split.jsonl.gz``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


ARTICLES = [
    {"document": f"{who} saw {n} {what}.\nThey left.", "summary": f"{n} {what}.", "id": str(n)}
    for n, (who, what) in enumerate(itertools.product(("Ann", "Bo"), ("cats", "dogs", "ants")))
]
PAIRS = [
    {"translation": {"en": f"{n} {english}.", "ro": f"{n} {romanian}."}}
    for n in range(3)
    for english, romanian in (("cats", "pisici"), ("roads", "străzi"))
]


def writing_folder(path: Path) -> Path:
    """A local data folder with invented rows of XSum and of English with Romanian."""
    for split in ("train", "test"):
        split_file(path / "xsum" / "xsum", split, ARTICLES)
    split_file(path / "wmt16" / "ro-en", "test", PAIRS)
    for name in ("ro-sts", "tatoeba"):
        split_file(path / "wmt16" / f"ro-en_proxy_{name}", "train", PAIRS)
    return path
