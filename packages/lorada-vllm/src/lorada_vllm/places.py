"""Where bottleneck adapters go in vLLM's layers, as forward hooks without a state of their own.

A layer of vLLM passes on y and x apart, the FFN's output and the residual stream, and the next norm
adds them. So what is added to x in front of the FFN counts as added behind it:

    placement    the layer computes         hook on                        that returns
    ffn          y + x + A(x)               post_attention_layernorm       LN(x), x + A(x)
    houlsby      y + A(y)                   self_attn.o_proj and mlp       y + A(y)
    series       Wx + A(Wx)                 a linear layer W               Wx + A(Wx)
    pfeiffer     A(y + x) + y + x           the layer                      y + A(y + x), x
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lorada.tuners.bottleneck.bottleneck import ACTIVATIONS, BottleneckConfig

CHILD = "lorada_bottleneck"
PLACEMENTS = ("ffn", "houlsby", "series", "pfeiffer")


class Bottleneck(nn.Module):
    """A(x) = s · U φ(D x + b_D) + s · b_U, computed in fp32."""

    down: Tensor
    up: Tensor

    def __init__(self, config: BottleneckConfig, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            # A buffer and no parameter: vLLM would look for a parameter in the base's files.
            self.register_buffer(name.removeprefix("lora_"), weight.float(), persistent=False)
        self.scale, self.activation = config.scale, ACTIVATIONS[config.activation]
        self.reads_residual = config.adapter_input == "residual"

    def forward(self, x: Tensor) -> Tensor:
        """A(x) in fp32."""
        hidden = x.float()
        weights = self._buffers
        if "norm_weight" in weights:
            weight, bias = weights["norm_weight"], weights["norm_bias"]
            hidden = F.layer_norm(hidden, hidden.shape[-1:], weight, bias)
        hidden = self.activation(F.linear(hidden, self.down, weights.get("down_bias")))
        return self.scale * F.linear(hidden, self.up, weights.get("up_bias"))


def _sum(here: Tensor, term: Tensor) -> Tensor:
    return (here + term).to(here.dtype)


def _beside_ffn(norm: Any, args: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    normed, x = output
    adapter = norm.lorada_bottleneck
    return normed, _sum(x, adapter(x if adapter.reads_residual else normed))


def _behind(module: Any, args: Any, output: Any) -> Any:
    if isinstance(output, tuple):  # a linear layer of vLLM also returns its bias, if not added
        return _sum(output[0], module.lorada_bottleneck(output[0])), *output[1:]
    return _sum(output, module.lorada_bottleneck(output))


def _behind_sum(layer: Any, args: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    y, x = output
    return _sum(y, layer.lorada_bottleneck(y + x)), x


# The adapter's name in the files of lorada, within a layer → the module of vLLM, and the hook.
PLACES: dict[str, tuple[str, Callable[..., Any]]] = {
    "mlp.bneck": ("post_attention_layernorm", _beside_ffn),
    "self_attn.bneck_houlsby_o_proj": ("self_attn.o_proj", _behind),
    "mlp.bneck_houlsby": ("mlp", _behind),
    "self_attn.bneck_series_o_proj": ("self_attn.o_proj", _behind),
    "mlp.bneck_series_down_proj": ("mlp.down_proj", _behind),
    "mlp.bneck_pfeiffer": ("", _behind_sum),
}


def place(layer: nn.Module, child: str, bottleneck: Bottleneck) -> None:
    """Put an adapter into a layer of vLLM's model."""
    path, hook = PLACES[child]
    module = layer.get_submodule(path)
    module.add_module(CHILD, bottleneck)
    module.register_forward_hook(hook)
