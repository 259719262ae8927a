"""Tiny exported stacks with large effects, and what transformers and PEFT make of prompts."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    set_seed,
)

from lorada import BottleneckConfig, LmamConfig, LoradaConfig
from lorada.inference.exported_config import mark

VOCABULARY = 256
CONFIGS = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
# vLLM's CPU kernels need heads of 32, 64, … numbers.
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 160,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 512, "initializer_range": 0.15, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NO_WINDOW = {"mistral": {"sliding_window": None}}


def lorada_la(length: int = 64, **changes: Any) -> list[Any]:
    """The parts of LoRaDA-LA: map, LoRA and bottleneck."""
    return [
        LmamConfig(length=length, rank=2, **changes),
        LoraConfig(r=2, lora_alpha=4, target_modules=["o_proj", "down_proj"]),
        BottleneckConfig(rank=6, scale=4.0),
    ]


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of numbers: token 17 is the word 17."""
    words = models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="2", pad_token="0")


def random_base(kind: str = "llama", **sizes: Any) -> Any:
    """A random base, the same each time."""
    set_seed(0)
    config = CONFIGS[kind](**{**SIZES, **NO_WINDOW.get(kind, {}), **sizes})
    return AutoModelForCausalLM.from_config(config)


def write_stack(
    folder: Path, parts: list[Any], kind: str = "llama", shard: str = "1GB", **sizes: Any
) -> Path:
    """An exported folder, as `lorada export` writes it: merged base, adapter of the rest, mark."""
    model = get_peft_model(random_base(kind, **sizes), LoradaConfig(parts=parts))
    move(model)
    merged: Any = model.merge_weights()
    for config in getattr(merged, "peft_config", {}).values():
        config.base_model_name_or_path = "."  # the folder itself, as an export has it
    merged.save_pretrained(folder, save_embedding_layers=False)
    merged.unload().save_pretrained(folder, max_shard_size=shard)
    mark(folder)
    tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def move(model: Any) -> None:
    """Weights as after training, with a large effect of every part."""
    set_seed(1)
    for name, parameter in model.named_parameters():
        if ".lmam." in name:
            parameter.add_(0.15 * torch.randn_like(parameter))
        elif "bneck" in name:
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif "lora_" in name:
            parameter.add_(0.2 * torch.randn_like(parameter))


def adapted(folder: Path) -> Any:
    """The whole stack in transformers, which loads the adapter beside the base."""
    return AutoModelForCausalLM.from_pretrained(str(folder)).eval()


def prompts(lengths: list[int]) -> list[list[int]]:
    """Random token ids, which never are a special token."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def greedy(model: Any, prompt: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    """The most likely continuation, token by token without a cache, and its log probabilities."""
    ids, found = list(prompt), []
    for _ in range(count):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        found.append(logits.log_softmax(-1))
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :], torch.stack(found)
