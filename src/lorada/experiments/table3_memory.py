"""Table 3: the memory of a map in one layer, by the paper's formulas and measured.

    training:  weights 4hnr + gradients 4hnr + Adam 16hnr + activations 2hnn = 2hn(12r + n) bytes
    inference: the finished map, 2hnn bytes

for 16-bit numbers (Adam's in 32 bits). A full-rank map (FMAM) has one weight of n·n where LMAM has
two of n·r. What autograd keeps for the backward pass is measured with saved-tensor hooks.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lorada.attention.attention_map import AttentionMap
from lorada.functional.maps import Ablation, add_map_reference, full_rank_map, low_rank_map
from lorada.runs.models.names import named_config
from lorada.support.models import MODELS
from lorada.tuners import LmamConfig, LoradaConfig
from lorada.tuners.lmam import LmamLayer, bake

LENGTH, TOKENS, RANK = 128, 512, 2  # n and N of section 3.3, and r
HEAD_WIDTH = 128
NARROW = 64  # width of the residual stream; a map does not depend on it
MIB = 2**20
Bytes = dict[str, int]

PRINTED = {  # MB: training, inference
    ("llama-7b", "LMAM"): ("1.19", "1"),
    ("llama-7b", "FMAM"): ("6", "1"),
    ("llama2-70b", "LMAM"): ("2.38", "2"),
    ("llama2-70b", "FMAM"): ("12", "2"),
}


def memory_table() -> dict[str, Any]:
    """Table 3, part by part: ``title``, ``columns``, ``rows`` and ``notes``."""
    rows: list[list[Any]] = []
    for (name, method), printed in PRINTED.items():
        config = named_config(name)
        heads = config.num_attention_heads
        full = method == "FMAM"
        columns = [
            formula_bytes(heads, full=full),
            paper_bytes(heads, LENGTH, full=full),
            paper_bytes(heads, TOKENS, full=full),
            measured_bytes(config, full=full),
        ]
        shown = {"training": printed[0], "inference": printed[1]}
        for part, (low_rank, full_rank) in FORMULAS.items():
            values = [round(column[part] / MIB, 4) for column in columns]
            formula = full_rank if full else low_rank
            rows.append([MODELS[name].title, method, part, formula, shown.get(part, ""), *values])
    return {
        "title": f"Table 3: extra memory of a map in one layer (n = {LENGTH}, r = {RANK})",
        "columns": [
            "model", "method", "part", "bytes", "printed MB", "formula MiB",
            f"paper's form MiB, N = {LENGTH}", f"paper's form MiB, N = {TOKENS}",
            f"as run here MiB, N = {TOKENS}",
        ],
        "rows": rows,
        "notes": [
            "The paper's form is Attn + Attn_s with 16-bit numbers. Its activations are 2hnn only "
            f"for N = n: autograd keeps Attn for the softmax and the sum for V, which is 2hNN more "
            f"({2 * 32 * TOKENS**2 // MIB} MiB for LLaMA-7B at N = {TOKENS}), not 2hnn; the "
            "factors with their position embedding (4hnr) and the causal mask come on top.",
            "Here factors, their gradients and the map are 32-bit numbers, twice the paper's. The "
            "map is computed again for the backward pass, so autograd keeps only the factors and "
            "the values, which attention keeps anyway.",
            "Inference here keeps the factors as well as the finished map, which bake() makes.",
        ],
    }  # fmt: skip


FORMULAS = {  # part → bytes of LMAM and of FMAM
    "weights": ("4hnr", "2hnn"),
    "gradients": ("4hnr", "2hnn"),
    "Adam": ("16hnr", "8hnn"),
    "activations": ("2hnn", "—"),
    "training": ("2hn(12r+n)", "12hnn"),
    "inference": ("2hnn", "2hnn"),
}


def formula_bytes(heads: int, *, full: bool) -> Bytes:
    """Table 3's formulas; FMAM's 12hnn has no activations, because its map is its weight."""
    map_ = 2 * heads * LENGTH**2
    weights = map_ if full else 4 * heads * LENGTH * RANK
    parts = {
        "weights": weights,
        "gradients": weights,
        "Adam": 4 * weights,
        "activations": 0 if full else map_,
    }
    return {**parts, "training": sum(parts.values()), "inference": map_}


def paper_bytes(heads: int, tokens: int, *, full: bool) -> Bytes:
    """Bytes measured on Eqs. 6-13 as printed, in bfloat16, for one sample of ``tokens`` tokens."""
    shapes = [(LENGTH, LENGTH)] if full else [(LENGTH, RANK), (RANK, LENGTH)]
    factors = [torch.zeros(heads, *s, dtype=torch.bfloat16).requires_grad_() for s in shapes]
    value = torch.zeros(1, heads, tokens, HEAD_WIDTH, dtype=torch.bfloat16, requires_grad=True)
    scores = torch.zeros(1, heads, tokens, tokens, dtype=torch.bfloat16, requires_grad=True)
    made: Callable[..., Tensor] = full_rank_map if full else low_rank_map

    def plain() -> Tensor:
        return scores.softmax(-1) @ value

    def mapped() -> Tensor:
        map_ = made(*factors, 1.0)
        return add_map_reference(scores.softmax(-1), map_, causal=True) @ value

    kept = kept_bytes(mapped, factors) - kept_bytes(plain, [])
    with torch.no_grad():
        finished = made(*factors, 1.0).nbytes
    return _trained(mapped, factors, kept) | {"inference": finished}


def measured_bytes(config: Any, *, full: bool) -> Bytes:
    """Bytes measured on the map of a real layer, as ``lorada train`` runs it."""
    model = mapped_model(config, "full_rank" if full else None).train()
    factors = [p for name, p in model.named_parameters() if ".lmam." in name]

    def mapped() -> Tensor:
        return attend(model)

    kept = kept_bytes(mapped, factors) - kept_bytes(lambda: attend(model, base=True), factors)
    parts = _trained(mapped, factors, kept)
    bake(model.eval())
    (layer,) = [module for module in model.modules() if isinstance(module, LmamLayer)]
    (map_,) = layer.maps()
    assert isinstance(map_, AttentionMap)
    assert map_.baked is not None
    return parts | {"inference": map_.baked.nbytes + parts["weights"]}


def _trained(forward: Callable[[], Tensor], factors: list[Any], kept: int) -> Bytes:
    """Weights, gradients and Adam's two moments (fp32, as in mixed precision), after one step."""
    forward().sum().backward()
    masters = [nn.Parameter(f.detach().float()) for f in factors]
    for master, factor in zip(masters, factors, strict=True):
        master.grad = factor.grad.float()
    adam = torch.optim.AdamW(masters)
    adam.step()
    moments = [s[key] for s in adam.state.values() for key in ("exp_avg", "exp_avg_sq")]
    parts = {
        "weights": sum(f.nbytes for f in factors),
        "gradients": sum(f.grad.nbytes for f in factors),
        "Adam": sum(moment.nbytes for moment in moments),
        "activations": kept,
    }
    return {**parts, "training": sum(parts.values())}


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
    """``narrow_model`` with a map."""
    part = LmamConfig(rank=RANK, length=LENGTH, ablation=ablation)
    return get_peft_model(narrow_model(config), LoradaConfig(parts=[part])).eval()


def narrow_model(config: Any) -> LlamaForCausalLM:
    """One layer with the heads of a config but narrow projections."""
    narrow = LlamaConfig(
        hidden_size=NARROW, intermediate_size=8, vocab_size=8, num_hidden_layers=1,
        head_dim=HEAD_WIDTH, num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
    )  # fmt: skip
    return LlamaForCausalLM(narrow).to(torch.bfloat16)


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
