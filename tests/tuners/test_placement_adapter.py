"""Adapters at every placement: how they start, saved, trained, and beside other parts."""

import pytest
import torch
from architectures import ARCHITECTURES, inputs, logits
from conftest import TINY, assert_close
from peft import LoraConfig, get_peft_model
from placements import CASES, adapted, fill, parts_of
from stacks import HIDDEN, assert_loads, bottleneck, lmam, randomise
from torch import Tensor, nn

from lorada import LoradaConfig
from lorada.paper.map_costs import kept_bytes
from lorada.tuners.bottleneck.bottleneck import hook_at

pytestmark = pytest.mark.fp64

# Those of ``placements``, and the default where a layer has something of its own: Bloom's and
# Falcon's FFN and sum, T5's layer of an FFN alone, GPT-2's Conv1D, OPT's tokens in one row.
ALL = [*CASES, *((name, "ffn") for name in ("bloom", "falcon", "gpt2", "opt", "t5"))]
every_case = pytest.mark.parametrize(("name", "placement"), ALL)

# The life of an adapter.


@every_case
def test_fresh_adapter_is_near_the_base_and_a_disabled_one_is_not_there(name, placement):
    batch = inputs(name)
    base = logits(ARCHITECTURES[name](), **batch)
    config = bottleneck(placement=placement, init="bert")
    model = get_peft_model(ARCHITECTURES[name](), config).eval()
    still = bottleneck(placement=placement, init="lora")
    still = get_peft_model(ARCHITECTURES[name](), still).eval()

    assert 0 < (logits(model, **batch) - base).abs().max() < 0.5
    if placement == "pfeiffer":  # the norm runs twice, on the same sum
        assert_close(logits(still, **batch), base)
    else:
        torch.testing.assert_close(logits(still, **batch), base, atol=0, rtol=0)
    randomise(model)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, **batch), base, atol=0, rtol=0)
    unloaded = model.unload()
    torch.testing.assert_close(logits(unloaded, **batch), base, atol=0, rtol=0)
    assert not any("lorada" in str(m._forward_hooks) + str(m._forward_pre_hooks)
                   for m in unloaded.modules())  # fmt: skip


def gradients(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    model(**batch).logits.square().mean().backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@every_case
def test_gradients_reach_the_adapters_alone_and_survive_checkpointing(name, placement):
    # A smooth φ, of which a gradient that is recomputed in another order differs little.
    model, batch = adapted(name, placement, activation="gelu").train(), inputs(name)
    expected = gradients(model, batch)

    assert set(expected) == {key for key, _ in model.named_parameters() if ".lora_" in key}
    model.enable_input_require_grads()
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        actual = gradients(model, batch)
        assert set(actual) == set(expected)
        for key in expected:
            assert_close(actual[key], expected[key])
    for part in parts_of(model).values():
        assert not part._saved, "an adapter keeps what it has read"


def test_a_layer_that_is_checkpointed_around_its_forward_is_changed_too():
    layer, x = nn.Linear(3, 3).train(), torch.randn(2, 3)
    expected = layer(x) + 1
    layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, None
    change = hook_at(layer, "out", lambda output: output + 1)
    assert_close(layer(x), expected)
    change.remove()
    assert_close(layer(x) + 1, expected)


# Beside other parts.

# The linears at which LoRA meets a placement.
MET = {
    "llama": ["o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen3": ["o_proj"],
    "roberta": ["dense"],
    "deberta_v2": ["attention.output.dense", "output.dense"],
    **{name: ["out_proj", "fc2"] for name in ("bart", "mbart", "opt")},
    "bloom": ["dense_4h_to_h"],
    "falcon": ["dense_4h_to_h"],
    "gpt2": ["mlp.c_proj"],
    "t5": ["wo"],
}


@every_case
def test_lora_at_the_same_linears_before_or_after_it_and_merged_gives_the_same(name, placement):
    batch, drawn = inputs(name), []
    beside = LoraConfig(r=2, target_modules=MET[name], init_lora_weights=False)
    for parts in ([beside, bottleneck(placement=placement)],
                  [bottleneck(placement=placement), beside]):  # fmt: skip
        drawn.append(get_peft_model(ARCHITECTURES[name](), LoradaConfig(parts=parts)).eval())
        fill(drawn[-1])
    first, second = (logits(model, **batch) for model in drawn)

    assert (first - logits(ARCHITECTURES[name](), **batch)).abs().max() > 0.1
    assert_close(second, first)
    for model in drawn:
        assert_close(logits(model.merge_weights(), **batch), first)


TOGETHER = {
    "pa_attn and ffn": ("bart", [{"placement": "pa_attn"}, {}]),
    "pa_attn and ffn of mbart": ("mbart", [{"placement": "pa_attn"}, {}]),
    "both of houlsby's, of two sizes": (
        "roberta",
        [
            {"placement": "houlsby", "target_modules": ["attention.output.dense"]},
            {"placement": "houlsby", "rank": 5, "target_modules": ["intermediate"]},
        ],
    ),
    "four at one mlp": (
        "llama",
        [{}, {"placement": "houlsby"}, {"placement": "series"}, {"placement": "parallel"}],
    ),
}
COUNTED = {"bart": 6 + 4, "mbart": 6 + 4, "roberta": 4, "llama": 2 + 4 + 2 + 4}  # of 2 layers each


@pytest.mark.parametrize("case", TOGETHER)
def test_placements_stack_with_each_other_the_map_and_lora(case, tmp_path):
    name, options = TOGETHER[case]
    lora_part = LoraConfig(r=2, target_modules=MET[name])
    parts = [lmam(), *(bottleneck(**each) for each in options), lora_part]
    model = get_peft_model(ARCHITECTURES[name](), LoradaConfig(parts=parts)).eval()
    fill(model)
    batch = inputs(name)
    expected = logits(model, **batch)
    assert_loads(model, ARCHITECTURES[name](), tmp_path, batch)
    assert len(parts_of(model)) == COUNTED[name]
    for removed in parts_of(model).values():  # each one counts
        weights = removed.lora_up["default"]
        kept = weights.detach().clone()
        weights.data.zero_()
        assert (logits(model, **batch) - expected).abs().max() > 1e-4
        weights.data.copy_(kept)
    assert_close(logits(model.merge_weights(), **batch), expected)


@every_case
def test_lora_that_comes_later_and_goes_again_does_not_move_the_adapters(name, placement):
    batch = inputs(name)
    beside = LoraConfig(r=2, target_modules=MET[name], init_lora_weights=False)
    part = bottleneck(placement=placement)
    whole = get_peft_model(ARCHITECTURES[name](), LoradaConfig(parts=[beside, part])).eval()
    fill(whole)
    model = get_peft_model(ARCHITECTURES[name](), LoradaConfig(parts=[part])).eval()
    source = dict(whole.named_parameters())
    for key, parameter in model.named_parameters():
        if ".bneck" in key:
            parameter.data = source[key.replace(".base_layer", "")].data
    alone = logits(model, **batch)

    model.add_adapter("later", LoradaConfig(parts=[beside]))
    for key, parameter in model.named_parameters():
        if ".later." in key:
            parameter.data = source[key.replace(".later.", ".default.")].data
    torch.testing.assert_close(logits(model, **batch), alone, atol=0, rtol=0)
    model.base_model.set_adapter(["default", "later"])
    assert_close(logits(model, **batch), logits(whole, **batch))
    model.delete_adapter("later")
    model.set_adapter("default")
    torch.testing.assert_close(logits(model, **batch), alone, atol=0, rtol=0)


# How an adapter starts, its dropout, what it keeps.


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
    batch = inputs("llama")
    torch.testing.assert_close(logits(model, **batch), logits(model, **batch), atol=0, rtol=0)
    model.train()
    assert not torch.allclose(logits(model, **batch), logits(model, **batch))
