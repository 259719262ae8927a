"""A plain twin of every placement of BottleneckConfig, for the tests of them."""

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES
from peft import PeftModel, get_peft_model
from stacks import bottleneck, randomise
from torch import nn

from lorada.tuners.bottleneck.adapter import BottleneckLayer

# Output projections of attentions.
PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj", "out_lin", "Wo", "o")
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


class After(Twin):
    def forward(self, *args):
        y = self.module(*args)
        return y + self.adapter(y)


class Before(Twin):
    def forward(self, x):
        return self.module(x + self.adapter(x))


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

    def __init__(self, module: nn.Module, adapter: Adapter):
        super().__init__(module, adapter)
        self.projection = next(name for name in PROJECTIONS if hasattr(module, name))

    def forward(self, hidden_states, *args, **kwargs):
        projection = getattr(self.module, self.projection)
        term = self.adapter(hidden_states)
        handle = projection.register_forward_pre_hook(lambda _, heads: (heads[0] + term,))
        output = self.module(hidden_states, *args, **kwargs)
        handle.remove()
        return output


class AfterSum(Twin):
    """The last module of an FFN in a pre-LN layer, which the layer adds to the residual stream x.

    y + A(x + y), and the layer makes y + A(x + y) + x of it.
    """

    norm = "final_layer_norm"  # which reads x

    def within(self, layer: nn.Module) -> None:
        def keep(module, args):
            self.stream = args[0]

        layer.get_submodule(self.norm).register_forward_pre_hook(keep)

    def forward(self, *args):
        y = self.module(*args)
        return y + self.adapter(self.stream + y)


class AfterSumOfLlama(AfterSum):
    norm = "post_attention_layernorm"


class AfterSumOfGemma2(AfterSum):
    norm = "pre_feedforward_layernorm"


# Architecture -> placement -> module of a layer, name of the adapter that adapts it, its twin.
BERT = {
    "houlsby": [
        ("attention.output.dense", "attention.output.bneck_houlsby_dense", After),
        ("output.dropout", "intermediate.bneck_houlsby", After),
    ],
    "pfeiffer": [("output.LayerNorm", "intermediate.bneck_pfeiffer", BetweenNorms)],
    "pa_attn": [("attention.self", "attention.self.bneck_pa_attn", BesideHeads)],
}
MBART = {
    "houlsby": [
        ("self_attn.out_proj", "self_attn.bneck_houlsby_out_proj", After),
        ("encoder_attn.out_proj", "encoder_attn.bneck_houlsby_out_proj", After),
        ("fc2", "final_layer_norm.bneck_houlsby", After),  # there is no dropout in eval mode
    ],
    "pa_attn": [
        ("self_attn", "self_attn.bneck_pa_attn", BesideHeadsWithin),
        ("encoder_attn", "encoder_attn.bneck_pa_attn", BesideHeadsWithin),
    ],
    "pfeiffer": [("fc2", "final_layer_norm.bneck_pfeiffer", AfterSum)],
}
PFEIFFER = [("final_layer_norm", "final_layer_norm.bneck_pfeiffer", BetweenNorms)]
LLAMA = {
    "series": [("mlp.down_proj", "mlp.bneck_series_down_proj", After)],
    "series_input": [
        ("mlp.gate_proj", "mlp.bneck_series_input_gate_proj", Before),
        ("mlp.up_proj", "mlp.bneck_series_input_up_proj", Before),
    ],
    "parallel": [
        ("mlp.up_proj", "mlp.bneck_parallel_up_proj", Beside),
        ("mlp.down_proj", "mlp.bneck_parallel_down_proj", Beside),
    ],
    "houlsby": [
        ("self_attn.o_proj", "self_attn.bneck_houlsby_o_proj", After),
        ("mlp", "mlp.bneck_houlsby", After),
    ],
    "pa_attn": [("self_attn", "self_attn.bneck_pa_attn", BesideHeadsWithin)],
    "pfeiffer": [("mlp", "mlp.bneck_pfeiffer", AfterSumOfLlama)],
}
TWINS = {
    "llama": LLAMA,
    "qwen3": {"pa_attn": LLAMA["pa_attn"]},  # its heads are wider than the model
    "roberta": BERT,
    "deberta_v2": BERT,
    "bart": {**MBART, "pfeiffer": PFEIFFER},
    "mbart": MBART,
}
CASES = [(name, placement) for name, twins in TWINS.items() for placement in twins]
cases = pytest.mark.parametrize(("name", "placement"), CASES, ids=lambda value: value)


def adapted(name: str, placement: str, **options) -> PeftModel:
    """A model with adapters whose weights have moved, in eval mode."""
    config = bottleneck(placement=placement, **options)
    model = get_peft_model(ARCHITECTURES[name](use_cache=False), config).eval()
    randomise(model)
    return model


def parts_of(model: nn.Module) -> dict[str, BottleneckLayer]:
    base = model.get_base_model()
    return {key: m for key, m in base.named_modules() if isinstance(m, BottleneckLayer)}


def twin_of(model: PeftModel, name: str, twins: list[tuple[str, str, type]]) -> nn.Module:
    """The plain model, with modules replaced by twins, one for each adapter of ``model``."""
    plain, left = ARCHITECTURES[name](use_cache=False), parts_of(model)
    for layer in [key for key, _ in plain.named_modules() if key.rpartition(".")[2].isdigit()]:
        for path, held, kind in twins:
            if f"{layer}.{held}" in left:
                part = left.pop(f"{layer}.{held}")
                module = plain.get_submodule(f"{layer}.{path}")
                twin = kind(module, Adapter(part))
                twin.part = (part,)
                plain.set_submodule(f"{layer}.{path}", twin)
                if isinstance(twin, AfterSum):
                    twin.within(plain.get_submodule(layer))
    assert not left, "parts that no twin accounts for"
    return plain.eval()
