"""BottleneckConfig: Adapter-FFN against its formula, s·U φ(D x + b_D) + s·b_U, by hand."""

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, assert_close
from peft import PeftModel, get_peft_model
from stacks import BOTTLENECK_COUNT, HIDDEN, LAYERS, WIDTH, batch, bottleneck, logits, randomise
from torch import Tensor, nn

from lorada.experiments.map_costs import kept_bytes

pytestmark = pytest.mark.fp64

PHI = {"relu": lambda x: x.clamp(min=0), "tanh": torch.tanh, "gelu": F.gelu}


def adapted(name: str, **options) -> PeftModel:
    model = get_peft_model(TINY[name](), bottleneck(**options)).eval()
    randomise(model)
    return model


def by_hand(host: nn.Module, x: Tensor, scale: float, activation: str = "relu") -> Tensor:
    """A(x) of the adapter that a module holds."""
    part = host.bneck
    down, up = part.lora_down["default"], part.lora_up["default"]
    zero = torch.zeros(())
    down_bias = part.lora_down_bias.get("default", zero)
    up_bias = part.lora_up_bias.get("default", zero)
    if "default" in part.lora_norm_weight:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * part.lora_norm_weight["default"] + part.lora_norm_bias["default"]
    hidden = PHI[activation](torch.einsum("wd,btd->btw", down, x) + down_bias)
    return scale * torch.einsum("dw,btw->btd", up, hidden) + scale * up_bias


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"scale": 2.0}, id="scale"),
        pytest.param({"activation": "tanh"}, id="tanh"),
        pytest.param({"activation": "gelu"}, id="gelu"),
        pytest.param({"use_bias": False}, id="no-bias"),
        pytest.param({"layer_norm": True}, id="layer-norm"),
        pytest.param({"init": "bert"}, id="bert-init"),
    ],
)
@pytest.mark.parametrize("adapter_input", ["residual", "normed"])
def test_llama_layer_adds_the_adapter_beside_its_ffn(adapter_input, options):
    model = adapted("llama", adapter_input=adapter_input, **options)
    layer = model.get_base_model().model.layers[1]
    cos_sin = (torch.ones(1, 5, 8), torch.zeros(1, 5, 8))  # no rotation
    x = torch.randn(2, 5, HIDDEN)

    with torch.no_grad():
        actual = layer(x, position_embeddings=cos_sin)
        with model.disable_adapter():
            attended, _ = layer.self_attn(
                layer.input_layernorm(x), position_embeddings=cos_sin, attention_mask=None
            )
            residual = x + attended
            normed = layer.post_attention_layernorm(residual)
            ffn = layer.mlp(normed)
        seen = {"residual": residual, "normed": normed}[adapter_input]
        kind = {key: options[key] for key in ("activation",) if key in options}
        term = by_hand(layer.mlp, seen, options.get("scale", 4.0), **kind)
    assert term.abs().max() > 0.1
    assert_close(actual, residual + ffn + term)


@pytest.mark.fp64(False)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_of_a_narrower_input_no_wide_copy_is_kept_and_nothing_else_changes(layer_norm):
    host = adapted("llama", layer_norm=layer_norm).base_model.model.model.layers[0].mlp
    part, x = host.bneck, torch.randn(3, 64, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    weights = [weight for weight in part.parameters() if weight.requires_grad]
    wide = x.detach().float().requires_grad_()  # as it is computed, beside a copy in fp32
    both = part.adapt("default", x), part.adapt("default", wide)
    assert torch.equal(*both)
    pull = torch.randn_like(both[0])
    (dx, *found), (dwide, *expected) = (
        torch.autograd.grad((term * pull).sum(), [given, *weights])
        for term, given in zip(both, (x, wide), strict=True)
    )
    assert torch.equal(dx, dwide.to(torch.bfloat16))
    for gradient, right in zip(found, expected, strict=True):
        assert torch.equal(gradient, right)
    kept = kept_bytes(lambda: part.adapt("default", x), [*weights, x])
    assert kept < x.nbytes  # what is as wide as the bottleneck


def test_start_draws_the_matrices_as_the_paper_of_each_start_does():
    wide = bottleneck(rank=64, init="bert")
    layer = get_peft_model(TINY["llama"](), wide).get_base_model().model.layers[0].mlp.bneck
    drawn = torch.cat([layer.lora_down["default"].flatten(), layer.lora_up["default"].flatten()])
    assert 0.019 < drawn.std() < 0.021
    assert not layer.lora_down_bias["default"].any()

    layer = get_peft_model(TINY["llama"](), bottleneck(rank=64)).get_base_model().model.layers[0]
    bound = HIDDEN**-0.5  # Kaiming-uniform with a = √5
    assert 0.95 * bound < layer.mlp.bneck.lora_down["default"].abs().max() <= bound
    assert not layer.mlp.bneck.lora_up["default"].any()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, LAYERS * BOTTLENECK_COUNT),
        ({"use_bias": False}, LAYERS * 2 * HIDDEN * WIDTH),
        ({"layer_norm": True}, LAYERS * (BOTTLENECK_COUNT + 2 * HIDDEN)),
        ({"layers_to_transform": [1]}, BOTTLENECK_COUNT),
        ({"exclude_modules": r".*layers\.0\..*"}, BOTTLENECK_COUNT),
    ],
)
def test_parameter_count_follows_the_options(options, expected):
    model = get_peft_model(TINY["llama"](), bottleneck(**options))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)

    assert trainable == expected


def test_dropout_is_the_models_own_unless_given():
    bert = TINY["bert"](hidden_dropout_prob=0.25)
    own = get_peft_model(bert, bottleneck()).get_base_model().bert.encoder.layer[0].intermediate
    given = get_peft_model(TINY["bert"](), bottleneck(dropout=0.5)).get_base_model()

    assert own.bneck.dropouts["default"] == 0.25
    assert given.bert.encoder.layer[0].intermediate.bneck.dropouts["default"] == 0.5
    model = adapted("llama", dropout=0.5)
    inputs = batch("llama")
    torch.testing.assert_close(logits(model, inputs), logits(model, inputs), atol=0, rtol=0)
    model.train()
    assert not torch.allclose(logits(model, inputs), logits(model, inputs))
