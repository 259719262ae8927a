"""A layer at the shape of LLaMA-7B with a map: the bytes that it keeps and its operations."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from lorada import LmamConfig, LoradaConfig
from lorada.functional.maps import Ablation
from lorada.paper.map_costs import LENGTH, RANK, TOKENS, cost_table
from lorada.support.models import named_config

HEAD_WIDTH = 128
NARROW = 64  # width of the residual stream; a map does not depend on it


def term_operations() -> dict[str, Any]:
    """Floating-point operations of the term in a layer of 512 tokens, n = 128."""
    config = named_config("llama-7b")
    model = mapped_model(config)
    counts = []
    for base in (False, True):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            attend(model, base=base)
        counts.append(counter.get_total_flops())
    width, inner = config.hidden_size, config.intermediate_size
    layer = 2 * TOKENS * (4 * width**2 + 3 * width * inner) + 4 * TOKENS**2 * width
    term = counts[0] - counts[1]
    shares = [row for row in cost_table(2).rows if row[0].startswith("share")]
    return {"term": term, "layer": layer, "share": term / layer, "table_2": shares}


def kept_bytes(forward: Callable[[], Tensor], parameters: list[Any]) -> int:
    """Bytes that autograd keeps after a forward pass; each storage once, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, Tensor] = {}  # keeps the tensors alive, so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    total = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in own)
    del output
    return total


def mapped_model(config: Any, ablation: Ablation | None = None) -> PeftModel:
    """One layer with the heads of a config but narrow projections, with a map."""
    narrow = LlamaConfig(
        hidden_size=NARROW, intermediate_size=8, vocab_size=8, num_hidden_layers=1,
        head_dim=HEAD_WIDTH, num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
    )  # fmt: skip
    base = LlamaForCausalLM(narrow).to(torch.bfloat16)
    part = LmamConfig(rank=RANK, length=LENGTH, ablation=ablation)
    return get_peft_model(base, LoradaConfig(parts=[part])).eval()


def attend(model: PeftModel, *, base: bool = False, batch: int = 1) -> Tensor:
    """Self-attention of its layer over N tokens, with the map or without."""
    hidden = torch.zeros(batch, TOKENS, NARROW, dtype=torch.bfloat16, requires_grad=True)
    turned = torch.ones(1, TOKENS, HEAD_WIDTH, dtype=torch.bfloat16)
    attention = model.get_base_model().model.layers[0].self_attn
    with model.disable_adapter() if base else nullcontext():
        output: Tensor = attention(
            hidden_states=hidden, position_embeddings=(turned, turned), attention_mask=None
        )[0]
    return output
