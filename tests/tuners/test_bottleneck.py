"""BottleneckConfig: how an adapter starts, how large it is, its dropout, what it keeps."""

import pytest
import torch
from conftest import TINY
from peft import get_peft_model
from placements import adapted
from stacks import BOTTLENECK_COUNT, HIDDEN, LAYERS, WIDTH, batch, bottleneck, logits

from lorada.paper.map_costs import kept_bytes

pytestmark = pytest.mark.fp64


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
