"""The stacks that the tests of ``LoradaConfig`` run through."""

from pathlib import Path

import torch
from conftest import TINY, assert_close
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
)
from torch import Tensor, nn
from transformers import DynamicCache

from lorada import BottleneckConfig, LmamConfig, LoradaConfig

LAYERS, HIDDEN, HEADS = 2, 32, 4  # of every tiny model
LENGTH, RANK, WIDTH = 6, 2, 3  # of the map, of all ranks but the bottleneck's, of that

# Names of the query, value and attention-output projections and of one matrix of the FFN.
QUERY, VALUE, OUTPUT, FFN = range(4)
LLAMA = ("q_proj", "v_proj", "o_proj", "down_proj")
BERT = ("query", "value", "attention.output.dense", "intermediate.dense")
NAMES = {"llama": LLAMA, "bert": BERT, "roberta": BERT}


def lmam(**options) -> LmamConfig:
    return LmamConfig(**{"rank": RANK, "length": LENGTH, "inverse_scale": 1.0, **options})


def bottleneck(**options) -> BottleneckConfig:
    return BottleneckConfig(**{"rank": WIDTH, **options})


def lora(name: str, *where: int, **options) -> LoraConfig:
    targets = [NAMES[name][i] for i in where or (QUERY, OUTPUT)]
    return LoraConfig(r=RANK, lora_alpha=4, target_modules=targets, **options)


def ia3(name: str, *where: int) -> IA3Config:
    targets = [NAMES[name][i] for i in where or (VALUE, FFN)]
    inputs = [target for target in targets if target == NAMES[name][FFN]]
    return IA3Config(target_modules=targets, feedforward_modules=inputs)


def adalora(name: str) -> AdaLoraConfig:
    steps = {"total_step": 10, "tinit": 1, "tfinal": 1, "deltaT": 1}
    targets = [NAMES[name][QUERY], NAMES[name][OUTPUT]]
    return AdaLoraConfig(init_r=4, target_r=1, target_modules=targets, **steps)


def oft(name: str) -> OFTConfig:
    return OFTConfig(r=0, oft_block_size=4, target_modules=[NAMES[name][QUERY]])


# Stack -> its parts beside map and bottleneck.
BESIDE = {
    "lora": lambda name: [lora(name)],
    "dora": lambda name: [lora(name, use_dora=True)],
    "adalora": lambda name: [adalora(name)],
    "ia3": lambda name: [ia3(name)],
    "oft": lambda name: [oft(name)],
    # IA3 around LoRA, on the same module.
    "lora_ia3": lambda name: [lora(name, QUERY), ia3(name, QUERY)],
}


def config_of(stack: str, name: str, **options) -> PeftConfig:
    """A fresh config of a stack for a tiny model."""
    if stack == "lmam":
        return lmam(**options)
    if stack == "bottleneck":
        return bottleneck(**options)
    return LoradaConfig(parts=[lmam(), *BESIDE[stack](name), bottleneck()], **options)


def starts_as_base(config: PeftConfig) -> bool:
    """Whether a new adapter changes no output of the base."""
    if isinstance(config, LoradaConfig):
        return all(map(starts_as_base, config.parts))
    if isinstance(config, LmamConfig):  # a softmax is never zero
        return config.init != "normal" and config.ablation != "softmax"
    if isinstance(config, BottleneckConfig):
        return config.init == "lora"
    return config.peft_type not in ("C3A", "FOURIERFT", "PREFIX", "UNILORA", "VBLORA")


def randomise(model: nn.Module, adapter: str = "default") -> None:
    """Give an adapter weights as after training: none at its start, all different."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # AdaLoRA keeps its rank among the parameters; it neither trains nor is saved.
            if adapter in name.split(".") and "ranknum" not in name:
                parameter.add_(0.3 * torch.randn(parameter.shape).to(parameter.dtype))


def moved(base: nn.Module, config: PeftConfig, adapter: str = "default") -> PeftModel:
    """A model with an adapter whose weights have moved from their start, in eval mode."""
    model = get_peft_model(base, config, adapter).eval()
    randomise(model, adapter)
    return model


def trained(stack: str, name: str, **options) -> PeftModel:
    """A tiny model with a stack whose weights have moved."""
    return moved(TINY[name](), config_of(stack, name, **options))


def batch(name: str) -> dict[str, Tensor]:
    """Three samples; the second is padded on the right."""
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": torch.randint(5, 90, (3, 8)), "attention_mask": mask}


def logits(model: nn.Module, inputs: dict[str, Tensor], **kwargs) -> Tensor:
    with torch.no_grad():
        return model(**inputs, **kwargs).logits


def assert_loads(
    model: PeftModel, base: nn.Module, folder: Path, inputs: dict[str, Tensor]
) -> PeftModel:
    """An adapter that is saved and loaded onto ``base`` gives the same logits there."""
    model.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(base, folder).eval()
    assert_close(logits(loaded, inputs), logits(model, inputs))
    return loaded


def in_chunks(model: nn.Module, tokens: Tensor, sizes: list[int]) -> Tensor:
    """The logits of tokens that are read in chunks of these sizes, into a cache."""
    cache, found = DynamicCache(config=model.config), []
    for chunk in tokens.split(sizes, 1):
        found.append(logits(model, {"input_ids": chunk}, past_key_values=cache, use_cache=True))
    return torch.cat(found, 1)


def training_stack(**options) -> LoradaConfig:
    """The stack of the training tests.

    Its map is no identity at the start, so a run that lost it could not give the same numbers,
    and it covers the answers of short rows, so that the last layer's map trains too.
    """
    parts = [lmam(length=16, init_weights=False), lora("llama"), bottleneck()]
    return LoradaConfig(parts=parts, **{"task_type": "CAUSAL_LM", **options})
