"""vLLM's models with the parts of a stack: the classes that an exported folder is served by."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from lorada.attention.learned_map import LearnedMap
from lorada.tuners.bottleneck.bottleneck import BottleneckConfig
from lorada.tuners.lmam import LmamConfig
from lorada_vllm.attention.mixins import MAP, AddsMap
from lorada_vllm.backends import refuse_unknown_backend
from lorada_vllm.folder import MAP_CHILD, PREFIX, adapter_parts, adapter_tensors
from lorada_vllm.paged_map import PagedMap, stack_maps
from lorada_vllm.places import Bottleneck, place


class WithParts:
    """Puts the parts of the folder's adapter into the model, after the weights of the base."""

    model: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.__dict__["folder"] = Path(vllm_config.model_config.model)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the base, without the tensors of the adapter that vLLM finds beside it."""
        own = ((name, tensor) for name, tensor in weights if not name.startswith(PREFIX))
        loaded: set[str] = super().load_weights(own)  # type: ignore[misc]
        self._place_parts(self.__dict__["folder"])
        return loaded

    @torch.no_grad()
    def _place_parts(self, folder: Path) -> None:
        configs = {type(part): part for part in adapter_parts(folder)}
        device = next(self.model.parameters()).device
        for (number, child), tensors in adapter_tensors(folder).items():
            layer = self.model.layers[number]
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
            if child == MAP_CHILD:
                _place_map(layer.self_attn.attn, configs[LmamConfig], tensors)
            else:
                place(layer, child, Bottleneck(configs[BottleneckConfig], tensors))
        attentions = (layer.self_attn.attn for layer in self.model.layers)
        stack_maps([attn.__dict__[MAP] for attn in attentions if MAP in attn.__dict__])


def _place_map(attention: Any, config: LmamConfig, tensors: dict[str, Tensor]) -> None:
    """Put a map where ``AddsMap`` finds it: on vLLM's attention layer."""
    if not isinstance(attention.impl, AddsMap):
        refuse_unknown_backend(attention.attn_backend.get_name())
    names = ("lora_w",) if "lora_w" in tensors else ("lora_w_a", "lora_w_b")
    factors = tuple(tensors[name] for name in names)
    map_ = LearnedMap(factors, config.inverse_scale, config.align, config.ablation)
    attention.__dict__[MAP] = PagedMap(map_, attention.num_heads, attention.num_kv_heads)


class LoradaLlamaForCausalLM(WithParts, LlamaForCausalLM):
    """Llama with the parts of a stack."""


class LoradaMistralForCausalLM(WithParts, MistralForCausalLM):
    """Mistral with the parts of a stack."""


class LoradaQwen2ForCausalLM(WithParts, Qwen2ForCausalLM):
    """Qwen 2 with the parts of a stack."""


class LoradaQwen3ForCausalLM(WithParts, Qwen3ForCausalLM):
    """Qwen 3 with the parts of a stack."""
