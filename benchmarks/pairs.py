"""``PAIRS``: which two sides each row of the table in docs/costs.md compares.

Each is a method twice, as the package places it and written directly or by PEFT's own class.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import direct
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from sides import (
    RATE,
    SEED,
    STEPS,
    Batch,
    Side,
    adamw,
    by_peft,
    layers_among,
    ours,
    owlore_layers,
    part_of,
    trained,
    written,
)
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from lorada.methods.snip import snip
from lorada.tuners.quanta.gates import default_dims

# Those whose other side has something of its own.


def peft_shira(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    """PEFT's SHiRA with the entries that SNIP chooses of this base, the same ones."""
    part: Any = part_of(mine)
    return by_peft(mine, base, snip(base, [batch], config=part))


def peft_adalora(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    """PEFT's AdaLoRA, whose allocator each step calls."""
    side = by_peft(mine, base)
    tuner: Any = side.model.base_model
    step = side.update

    def update(t: int) -> None:
        step(t)
        tuner.update_and_allocate(t + 1)

    return replace(side, update=update)


def peft_prefix(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    """PEFT's prefix, which moves the tokens l positions on and leaves its keys where they are.

    So its keys are ours turned by l positions.
    """
    config, length = base.config, part_of(mine).length
    model = get_peft_model(
        base, PrefixTuningConfig(num_virtual_tokens=length, task_type="CAUSAL_LM")
    )
    weight = next(p for p in model.parameters() if p.requires_grad)
    groups, width = config.num_key_value_heads, weight[0].numel() // config.num_hidden_layers // 2
    cos, sin = base.model.rotary_emb(weight, torch.tensor([[length]]))
    names = [n for n in mine.parameters if n.endswith(".key")]

    def turned(keys: Tensor, sign: int) -> Tensor:
        heads = keys.view(length, groups, -1)
        left, right = heads.chunk(2, -1)
        return (heads * cos[0] + sign * torch.cat([-right, left], -1) * sin[0]).reshape_as(keys)

    blocks = weight.data.view(length, -1, 2, width)
    for index, name in enumerate(names):
        blocks[:, index, 0] = turned(mine.parameters[name].detach(), 1)
        blocks[:, index, 1] = mine.parameters[name[:-3] + "value"].detach()

    def gradients() -> dict[str, Tensor | None]:
        assert weight.grad is not None
        found: dict[str, Tensor | None] = {}
        for index, name in enumerate(names):
            key, value = weight.grad.view(length, -1, 2, width)[:, index].unbind(1)
            found |= {name: turned(key.contiguous(), -1), name[:-3] + "value": value}
        return found

    return replace(adamw(model, {"embedding": weight}), gradients=gradients)


def direct_sora(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    """SoRA with a parameter group that does not decay for its gates."""
    side = written(mine, base, partial(direct.sora, alpha=part_of(mine).alpha))
    gates = [p for n, p in side.parameters.items() if n.endswith(".gate")]
    others = [p for n, p in side.parameters.items() if not n.endswith(".gate")]
    optimizer = AdamW([{"params": others, "weight_decay": 0.1}, {"params": gates}], RATE,
                      weight_decay=0.0)  # fmt: skip

    def update(t: int) -> None:
        optimizer.step()
        direct.soft_threshold(gates, 3e-4)

    return replace(side, update=update)


def direct_lamda(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    """LaMDA, of whose B the first columns stay as they are."""
    side = written(mine, base, direct.lamda)
    frozen = direct.FrozenColumns([p for n, p in side.parameters.items() if n.endswith(".B")])
    step = side.update

    def before(t: int) -> None:
        frozen.share = min(1.0, t / (0.3 * STEPS))

    return replace(side, before=before, update=lambda t: frozen.around(lambda: step(t)))


def direct_ist(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    """PEFT's LoRA, a quarter of whose layers is drawn for each step."""
    side = by_peft(mine, base)
    layers = layers_among(side.parameters)
    count = max(1, len(layers) // 4)

    def before(t: int) -> None:
        direct.some_layers(layers, count, SEED * 1_000_003 + t)

    return replace(side, before=before)


def direct_full(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    """Every parameter."""
    return adamw(base, trained(base.requires_grad_(True)))


def direct_owlore(mine: Side, base: PreTrainedModel, batch: Batch, rank: int | None = None) -> Side:
    """A few layers drawn before the first step; with a rank, GaLore for their matrices."""
    parameters = trained(base.requires_grad_(True))
    layers = layers_among(parameters)
    direct.some_layers(layers, owlore_layers(base.config), SEED * 1_000_003)
    matrices = [p for layer in layers for p in layer if p.dim() == 2] if rank else []
    projected = set(matrices)
    rest = [p for p in parameters.values() if p not in projected]
    optimizer, state = AdamW(rest, lr=RATE, weight_decay=0.0), {}

    def update(t: int) -> None:
        optimizer.step()
        direct.galore_step(matrices, state, lr=RATE, rank=rank or 0)

    return Side(base, parameters, update)


# The rows of the table.

Other = Callable[[Side, PreTrainedModel, Batch], Side]


@dataclass(frozen=True)
class Pair:
    """One row.

    Attributes:
        method: a name of METHODS, or one of the two that ``plan_of`` knows beside them.
        against: what the other side is, in words.
        other: makes the other side.
        padded: whether the rows of the batch have different lengths.
        starts: whether the adapter stays at its start; else it is moved off it.
        trains: whether the comparison needs training mode, for methods without dropout.
        same: whether both sides must have the same parameters; else the other side has a part.
    """

    method: str
    against: str
    other: Other
    padded: bool = False
    starts: bool = False
    trains: bool = False
    same: bool = True


def written_by(*forms: Callable[..., None]) -> Other:
    """The other side by these forms of ``direct``."""
    return lambda mine, base, batch: written(mine, base, *forms)


def _peft(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    return by_peft(mine, base)


def _quanta(base: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
    direct.quanta(base, tensors, default_dims(base.config.hidden_size))


def _peft_lora_of(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    return by_peft(mine, base, part_of(mine, LoraConfig))


def _with_lora(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    adapter = partial(direct.adapter_ffn, scale=4.0, dropout=0.05)
    return by_peft(mine, base, part_of(mine, LoraConfig), direct.lmam, adapter)


def _longlora(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    return by_peft(mine, base, None, lambda base, tensors: direct.shifted_attention(base))


def _omoe(mine: Side, base: PreTrainedModel, batch: Batch) -> Side:
    part = part_of(mine)
    scale = part.alpha / part.rank
    return written(mine, base, partial(direct.omoe, scale=scale, dropout=part.dropout))


_ADAPTER = partial(direct.adapter_ffn, scale=4.0)
PAIRS: dict[str, Pair] = {
    "noise": Pair(
        "lora",
        "the same, to see the noise",
        lambda mine, base, batch: ours("lora", base, batch),
        starts=True,
    ),
    "lmam": Pair("lmam", "the map in the attention's forward", written_by(direct.lmam)),
    "lmam_padded": Pair("lmam", "the same", written_by(direct.lmam), padded=True),
    "fmam": Pair("fmam", "the map in the attention's forward", written_by(direct.lmam)),
    "lora": Pair("lora", "PEFT's LoRA", _peft),
    "lora+lmam": Pair(
        "lora+lmam", "PEFT's LoRA without a map", _peft_lora_of, starts=True, same=False
    ),
    "dora": Pair("dora", "PEFT's DoRA", _peft),
    "adalora": Pair("adalora", "PEFT's AdaLoRA with its allocator", peft_adalora),
    "shira": Pair("shira", "PEFT's SHiRA", peft_shira),
    "prefix": Pair("prefix", "PEFT's prefix tuning", peft_prefix),
    "adapter_ffn": Pair("adapter_ffn", "the layer's forward", written_by(_ADAPTER)),
    "series": Pair("series", "the linear's forward", written_by(direct.series)),
    "parallel": Pair("parallel", "the linears' forward", written_by(direct.parallel)),
    "quanta": Pair("quanta", "movedim and matmul", written_by(_quanta)),
    "sora": Pair("sora", "the linears' forward, thresholds", direct_sora),
    "lamda": Pair("lamda", "W_res and three linears, frozen columns", direct_lamda),
    "omoe": Pair("omoe", "a loop over experts", _omoe),
    "longlora": Pair("longlora", "PEFT's LoRA, block mask", _longlora, trains=True),
    "ist": Pair("ist", "PEFT's LoRA, requires_grad flips", direct_ist),
    "owlore": Pair(
        "owlore", "requires_grad flips, GaLore loop", partial(direct_owlore, rank=256), starts=True
    ),
    "owlore_full": Pair("owlore_full", "requires_grad flips, AdamW", direct_owlore, starts=True),
    "full": Pair("full", "the model as it is", direct_full, starts=True),
    "lorada_a": Pair("lorada_a", "map and adapter in forwards", written_by(direct.lmam, _ADAPTER)),
    "lorada_la": Pair("lorada_la", "PEFT's LoRA, map and adapter in forwards", _with_lora),
    "lorada_la_padded": Pair("lorada_la", "the same", _with_lora, padded=True),
    "lorada_q": Pair(
        "lorada_q", "map in the forward, movedim and matmul", written_by(direct.lmam, _quanta)
    ),
}
