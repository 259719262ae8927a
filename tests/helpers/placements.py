"""A plain twin of every placement of BottleneckConfig in every kind of layer, for the tests."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES
from peft import PeftModel
from stacks import bottleneck, moved
from torch import nn

from lorada.tuners.bottleneck.bottleneck import BottleneckLayer

PHI = {"relu": torch.relu, "tanh": torch.tanh, "gelu": F.gelu}


class Adapter(nn.Module):
    """A(x) = s · U φ(D x + b_D) + s · b_U, with copies of the weights of a part."""

    def __init__(self, part: BottleneckLayer):
        super().__init__()
        self.weights = nn.ParameterDict(
            {name: getattr(part, name)["default"].detach().clone()
             for name in part.adapter_layer_names if "default" in getattr(part, name)}
        )  # fmt: skip
        self.config = part.configs["default"]

    def forward(self, x):
        weights = {"lora_down_bias": 0.0, "lora_up_bias": 0.0, **self.weights}
        if "lora_norm_weight" in weights:
            mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
            x = (x - mean) / (variance + 1e-5).sqrt()
            x = x * weights["lora_norm_weight"] + weights["lora_norm_bias"]
        hidden = x @ weights["lora_down"].T + weights["lora_down_bias"]
        hidden = PHI[self.config.activation](hidden) @ weights["lora_up"].T
        return self.config.scale * (hidden + weights["lora_up_bias"])


class Twin(nn.Module):
    """A module of the model with an adapter at it."""

    def __init__(self, module: nn.Module, adapter: Adapter):
        super().__init__()
        self.module, self.adapter = module, adapter

    def within(self, layer: nn.Module, kind: "Layer") -> None:
        """Look at other modules of its layer."""


class After(Twin):
    def forward(self, *args):
        y = self.module(*args)
        return y + self.adapter(y)


class Beside(Twin):
    def forward(self, x):
        return self.module(x) + self.adapter(x)


class BetweenNorms(Twin):
    def forward(self, h):
        return self.module(self.adapter(self.module(h)) + h)


class BesideHeads(Twin):
    """Attention whose heads leave it: BERT's."""

    def forward(self, hidden_states, *args, **kwargs):
        heads, *others = self.module(hidden_states, *args, **kwargs)
        return heads + self.adapter(hidden_states), *others


class BesideHeadsWithin(Twin):
    """Attention that projects its heads itself."""

    def within(self, layer: nn.Module, kind: "Layer") -> None:
        self.projection = next(name for name in kind.projections if hasattr(self.module, name))

    def forward(self, hidden_states, *args, **kwargs):
        projection = getattr(self.module, self.projection)
        term = self.adapter(hidden_states)
        handle = projection.register_forward_pre_hook(lambda _, heads: (heads[0] + term,))
        output = self.module(hidden_states, *args, **kwargs)
        handle.remove()
        return output


class AfterFfn(Twin):
    """A module that gives y, beside what the FFN reads: the residual stream x, or LN(x)."""

    def within(self, layer: nn.Module, kind: "Layer") -> None:
        def keep(module, args, output):
            self.x, self.normed = args[0], args[0] if kind.norm else output

        layer.get_submodule(kind.reader).register_forward_hook(keep)


class BesideFfn(AfterFfn):
    def forward(self, *args):
        x = self.x if self.adapter.config.adapter_input == "residual" else self.normed
        return self.module(*args) + self.adapter(x)


class AfterSum(AfterFfn):
    """y + A(x + y), of which a pre-LN layer makes y + A(x + y) + x."""

    def forward(self, *args):
        y = self.module(*args)
        return y + self.adapter(self.x + y)


Twins = list[tuple[str, str, type[Twin]]]  # module of a layer, name of its adapter, the twin
LINEARS = {"series": After, "parallel": Beside}


@dataclass(frozen=True)
class Layer:
    """Where a layer of an architecture computes what, independent of the library's tables.

    Attributes:
        attentions: its attentions.
        projections: the output projection of each, in it or, with a dot, in the layer.
        y: the module that gives the FFN's output, before a dropout, of which tests have none.
        held: the module that holds the parts of the FFN.
        reader: the module that reads the residual stream in front of the FFN, and normalises it in
            a pre-LN layer.
        norm: the norm behind the residual sum of a post-LN layer.
        parallel: whether the FFN is beside the attention.
        base: the architecture, if it is another than the name says, and changes of its config.
    """

    attentions: tuple[str, ...]
    projections: tuple[str, ...]
    y: str
    held: str
    reader: str
    norm: str = ""
    parallel: bool = False
    base: tuple[str, dict[str, Any]] | None = None

    def twins(self, placement: str) -> Twins:
        """The twins of a layer for a placement on FFN or attention."""
        held = f"{self.held}.bneck_{placement}"
        if placement == "ffn":
            return [(self.y, f"{self.held}.bneck", BesideFfn)]
        if placement == "pfeiffer" and self.norm:
            return [(self.norm, held, BetweenNorms)]
        if placement == "pfeiffer":
            return [(self.y, held, After if self.parallel else AfterSum)]
        found = []
        for attention, projection in zip(self.attentions, self.projections, strict=True):
            path = projection if "." in projection else f"{attention}.{projection}"
            parent, _, own = path.rpartition(".")
            kind = BesideHeads if path == projection else BesideHeadsWithin
            beside = (attention, f"{attention}.bneck_pa_attn", kind)
            behind = (path, f"{parent}.bneck_houlsby_{own}", After)
            found.append(beside if placement == "pa_attn" else behind)
        return found if placement == "pa_attn" else [*found, (self.y, held, After)]


def _attention(name: str, projection: str, *more: Any, **options: Any) -> Layer:
    return Layer((name,), (projection,), *more, **options)


def _mlp(name: str, projection: str, norm: str, **options: Any) -> Layer:
    return _attention(name, projection, "mlp", "mlp", norm, **options)


def _fc(**options: Any) -> Layer:
    attentions, projections = ("self_attn", "encoder_attn"), ("out_proj", "out_proj")
    options = {"reader": "final_layer_norm", **options}
    return Layer(attentions, projections, "fc2", "final_layer_norm", **options)


AFTER_ATTENTION = "post_attention_layernorm"
LLAMA = _mlp("self_attn", "o_proj", AFTER_ATTENTION)
GEMMA2 = _attention("self_attn", "o_proj", "post_feedforward_layernorm", "mlp",
                    "pre_feedforward_layernorm")  # fmt: skip
BERT = _attention("attention.self", "attention.output.dense", "output.dense", "intermediate",
                  "intermediate", norm="output.LayerNorm")  # fmt: skip
POST_LN = {"reader": "fc1", "norm": "final_layer_norm"}
KINDS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3"), GEMMA2),
    "phi": _mlp("self_attn", "dense", "input_layernorm", parallel=True),
    "gpt2": _mlp("attn", "c_proj", "ln_2"),
    "gptj": _mlp("attn", "out_proj", "ln_1", parallel=True),
    "gpt_neox": _mlp("attention", "dense", AFTER_ATTENTION, parallel=True),
    "gpt_neox, serial": _mlp("attention", "dense", AFTER_ATTENTION,
                             base=("gpt_neox", {"use_parallel_residual": False})),
    **dict.fromkeys(("bert", "roberta", "xlm_roberta", "deberta", "deberta_v2"), BERT),
    "distilbert": _attention("attention", "out_lin", "ffn.lin2", "ffn", "ffn.lin1",
                             norm="output_layer_norm"),
    "modernbert": _mlp("attn", "Wo", "mlp_norm"),
    **dict.fromkeys(("mbart", "whisper", "opt"), _fc()),
    "bart": _fc(**POST_LN),
    "opt, norms behind": _fc(**POST_LN, base=("opt", {"do_layer_norm_before": False})),
    "t5": Layer(("SelfAttention", "EncDecAttention"), ("o", "o"), "DenseReluDense",
                "DenseReluDense", "layer_norm"),
    "vit": _mlp("attention", "o_proj", "layernorm_after"),
}  # fmt: skip


def of_linears(placement: str, *paths: str) -> Twins:
    """The twins of linear layers."""
    found = []
    for path in paths:
        parent, dot, own = path.rpartition(".")
        found.append((path, f"{parent}{dot}bneck_{placement}_{own}", LINEARS[placement]))
    return found


def twins_of(name: str, placement: str) -> Twins:
    """The twins of a layer for a placement with its default targets."""
    targets = {"series": ["down"], "parallel": ["up", "down"]}
    if placement in targets:
        return of_linears(placement, *(f"mlp.{each}_proj" for each in targets[placement]))
    return KINDS[name].twins(placement)


ON_LAYERS = ("ffn", "houlsby", "pa_attn", "pfeiffer")
# What the tests of the life of an adapter run through.
CASES = [
    *(("llama", placement) for placement in (*ON_LAYERS, *LINEARS)),
    ("qwen3", "pa_attn"),  # its heads are wider than the model
    *((name, placement) for name in ("roberta", "deberta_v2", "bart", "mbart")
      for placement in ON_LAYERS),
]  # fmt: skip


def made(name: str, **options: Any) -> nn.Module:
    """The plain model of one of ``KINDS``."""
    architecture, changes = KINDS[name].base or (name, {})
    return ARCHITECTURES[architecture](use_cache=False, **changes, **options)


def adapted(name: str, placement: str = "ffn", **options: Any) -> PeftModel:
    """A model with adapters whose weights have moved, in eval mode."""
    return moved(made(name), bottleneck(placement=placement, **options))


def fill(model: nn.Module) -> None:
    """Give parameters values that depend on nothing but their order among those of the parts."""
    generator = torch.Generator().manual_seed(0)
    for key, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        if "default" in key.split("."):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def parts_of(model: nn.Module) -> dict[str, BottleneckLayer]:
    base = model.get_base_model()
    return {key: m for key, m in base.named_modules() if isinstance(m, BottleneckLayer)}


def layers_of(model: nn.Module) -> list[str]:
    return [key for key, _ in model.named_modules() if key.rpartition(".")[2].isdigit()]


def twin_of(model: PeftModel, name: str, twins: Twins) -> nn.Module:
    """The plain model, with modules replaced by twins, one for each adapter of ``model``."""
    plain, left = made(name), parts_of(model)
    for layer in layers_of(plain):
        inside = [path for path, _ in plain.get_submodule(layer).named_modules()]
        for path, held, kind in twins:
            if path in inside:
                part = left.pop(f"{layer}.{held}")
                twin = kind(plain.get_submodule(f"{layer}.{path}"), Adapter(part))
                twin.part = (part,)
                twin.within(plain.get_submodule(layer), KINDS[name])
                plain.set_submodule(f"{layer}.{path}", twin)
    assert not left, "parts that no twin accounts for"
    return plain.eval()
