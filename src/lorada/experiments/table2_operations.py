"""Table 2: counts the extra operations of a map, by the paper's formulas and on a real layer.

torch's FLOP counter counts them on one LLaMA-7B layer without weights (2 FLOPs are one
multiplication and its addition); additions of the map are counted call by call. The paper's
``t_a``/``t_m`` weighting is left out of both sides.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lorada.experiments.table3_memory import (
    LENGTH,
    TOKENS,
    attend,
    mapped_model,
    memory_table,
    narrow_model,
)
from lorada.functional.maps import add_map_reference
from lorada.runs.models.names import named_config
from lorada.tuners.lmam import bake

PRINTED = 1.97e-5  # the share of the model's operations in section 3.3
Parts = dict[str, int]


def operations_table(number: int) -> dict[str, Any]:
    """Table 2 (operations) or 3 (memory): ``title``, ``columns``, ``rows`` and ``notes``.

    Raises:
        ValueError: for another number.
    """
    tables = {2: _table_2, 3: memory_table}
    if number not in tables:
        raise ValueError(f"table {number} does not show what a map costs: tables 2 and 3 do")
    return tables[number]()


def _table_2() -> dict[str, Any]:
    config = named_config("llama-7b")
    extra: int = config.num_attention_heads * min(LENGTH, TOKENS) ** 2
    added_flops, additions = _added_to_the_map(config.num_attention_heads)
    own, _ = _own_term(config)
    lora = _merged_lora(config)
    width = config.hidden_size
    rows: list[list[Any]] = [
        ["LoRA, merged: extra multiplications", "0", "0", 0, lora[0] // 2],
        ["LoRA, merged: extra additions", "0", "0", 0, lora[1]],
        ["LMAM, map added to Attn: extra multiplications", "0", "0", 0, added_flops // 2],
        ["LMAM, map added to Attn: extra additions", "h·min(n,N)²", "h·min(n,N)²", extra,
         additions],
        ["LMAM, as run here (own term on V): extra multiplications", "min(n,N)²·d", "—",
         min(LENGTH, TOKENS) ** 2 * width, own // 2],
    ]  # fmt: skip
    whole = 2 * _layer(measured_parts(config, TOKENS))
    shares = share_candidates()
    for what, formula, computed, measured in shares:
        rows.append([f"share of {what}", formula, "1.97e-5", f"{computed:.3g}", f"{measured:.3g}"])
    nearest = min(shares, key=lambda row: abs(row[2] - PRINTED))
    at_512 = min((r for r in shares if "128" not in r[0]), key=lambda row: abs(row[2] - PRINTED))
    return {
        "title": "Table 2: extra operations of LoRA and LMAM in one layer of LLaMA-7B at inference "
        f"(N = {TOKENS}, n = {LENGTH}, h = {config.num_attention_heads}, d = {width})",
        "columns": ["what", "formula", "printed", "computed", "measured"],
        "rows": rows,
        "notes": [
            f"With the printed N = {TOKENS} no count gives {PRINTED:.3g}; nearest is the share of "
            f"{at_512[0]} ({at_512[2]:.4g}).",
            f"Nearest of all is the share of {nearest[0]} ({nearest[2]:.4g}), which rounds to the "
            "printed number: the paper may have counted a text of n tokens, though it says "
            f"N = {TOKENS}, where that share is {shares[-2][2]:.3g}.",
            "Added to the attention map, LMAM needs no multiplications. Here its product with V is "
            "a separate term, so that fused kernels, which never form the attention map, can be "
            f"used; it costs {own / whole:.2%} of the layer's multiplications.",
        ],
    }


def _attention(parts: Parts) -> int:
    return parts["qkv"] + parts["o"] + 2 * parts["pairs"]


def _layer(parts: Parts) -> int:
    return _attention(parts) + parts["ffn"]


def share_candidates() -> list[tuple[str, str, float, float]]:
    """The share of h·min(n,N)² in several totals: (what, formula, computed, measured)."""
    config = named_config("llama-7b")
    layers: int = config.num_hidden_layers
    parts = {n: (computed_parts(config, n), measured_parts(config, n)) for n in (TOKENS, LENGTH)}

    def model(parts: Parts) -> float:
        return _layer(parts) + parts["head"] / layers  # of one layer, as is what a map adds

    at, both = f"N = {TOKENS}", "multiplications and additions"
    totals: list[tuple[str, str, int, Callable[[Parts], float]]] = [
        (f"Q, K, V projections, {at}", "3Nd²", TOKENS, lambda p: p["qkv"]),
        (f"Q, K, V projections and QKᵀ, {at}", "3Nd²+N²d", TOKENS,
         lambda p: p["qkv"] + p["pairs"]),
        (f"attention without W_O, {at}", "3Nd²+2N²d", TOKENS, lambda p: _attention(p) - p["o"]),
        (f"attention, {at}", "4Nd²+2N²d", TOKENS, _attention),
        (f"attention, {both}, {at}", "8Nd²+4N²d", TOKENS, lambda p: 2 * _attention(p)),
        (f"the layer, {at}", "4Nd²+2N²d+3Ndf", TOKENS, _layer),
        (f"the layer, {both}, {at}", "8Nd²+4N²d+6Ndf", TOKENS, lambda p: 2 * _layer(p)),
        (f"the model with its head, {at}", "L(4Nd²+2N²d+3Ndf)+NdV", TOKENS, model),
        (f"the model with its head, N = n = {LENGTH}", "L(4Nd²+2N²d+3Ndf)+NdV", LENGTH, model),
    ]  # fmt: skip
    found = []
    for what, formula, tokens, count in totals:
        extra = config.num_attention_heads * min(LENGTH, tokens) ** 2
        computed, measured = (extra / count(each) for each in parts[tokens])
        found.append((what, formula, computed, measured))
    return found


def computed_parts(config: Any, tokens: int) -> Parts:
    """Multiplications of a layer, and of the head, by the formulas."""
    width, wide = config.hidden_size, config.intermediate_size
    return {
        "qkv": 3 * tokens * width**2,
        "o": tokens * width**2,
        "pairs": tokens**2 * width,  # QKᵀ, and Attn·V as much again
        "ffn": 3 * tokens * width * wide,
        "head": tokens * width * config.vocab_size,
    }


def measured_parts(config: Any, tokens: int) -> Parts:
    """The same as ``computed_parts``, by the FLOP counter in a layer on the meta device."""
    config = LlamaConfig(**{**config.to_dict(), "attn_implementation": "sdpa"})
    with torch.device("meta"):
        layer = LlamaDecoderLayer(config, 0)
        head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        hidden = torch.zeros(1, tokens, config.hidden_size)
        cos = torch.zeros(1, tokens, config.hidden_size // config.num_attention_heads)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        head(layer(hidden, position_embeddings=(cos, cos), attention_mask=None))
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}

    def of(*names: str) -> int:
        total: int = sum(flops[f"LlamaDecoderLayer.{name}"] for name in names)
        return total // 2

    linear = [f"self_attn.{name}_proj" for name in "qkvo"]
    return {
        "qkv": of(*linear[:3]),
        "o": of(linear[3]),
        "pairs": (of("self_attn") - of(*linear)) // 2,
        "ffn": of("mlp"),
        "head": flops["Global"] // 2 - of("self_attn", "mlp"),
    }


class _Additions(TorchDispatchMode):
    """Counts the elements that additions of two tensors produce."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_):
            self.count += out.numel()
        return out


def _added_to_the_map(heads: int) -> tuple[int, int]:
    """FLOPs and additions of adding a finished map to Attn (Eq. 12), where the map covers it."""
    size = min(LENGTH, TOKENS)
    attention = torch.zeros(1, heads, size, size)  # the corner of Attn that the map covers
    with FlopCounterMode(display=False) as counter, _Additions() as additions, torch.no_grad():
        add_map_reference(attention, torch.zeros(heads, LENGTH, LENGTH), causal=True)
    return counter.get_total_flops(), additions.count


def _own_term(config: Any) -> tuple[int, int]:
    """FLOPs and additions that a finished map adds to a layer as this package runs it."""
    model = mapped_model(config)
    bake(model)
    return _less(_count(model), _count(model, base=True))


def _merged_lora(config: Any) -> tuple[int, int]:
    """FLOPs and additions that a merged LoRA adds to a layer."""
    lora = LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    model = get_peft_model(narrow_model(config), lora).eval()
    plain = _count(model, base=True)
    model.merge_adapter()
    return _less(_count(model), plain)


def _count(model: PeftModel, *, base: bool = False) -> tuple[int, int]:
    """FLOPs and additions of tensors in the self-attention of a layer."""
    with FlopCounterMode(display=False) as flops, _Additions() as additions, torch.no_grad():
        attend(model, base=base)
    return flops.get_total_flops(), additions.count


def _less(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] - other[0], one[1] - other[1]
