"""The parameters of each form of a map, its start, and positions that few rows had."""

import warnings

import pytest
import torch
from conftest import TINY, assert_close
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from stacks import batch, logits, moved
from transformers import MiniMaxConfig, MiniMaxForCausalLM

from lorada import LmamConfig
from lorada.functional.maps import position_embedding
from lorada.tuners.lmam import LmamLayer

pytestmark = pytest.mark.fp64

HEADS = 4  # of the tiny models


def test_a_full_rank_map_is_one_matrix_for_each_head():
    model = get_peft_model(TINY["llama"](), LmamConfig(length=6, ablation="full_rank"))
    saved = get_peft_model_state_dict(model)
    assert [key.partition(".lmam.")[2] for key in saved] == ["lora_w"] * 2  # of two layers
    assert {weight.shape for weight in saved.values()} == {(HEADS, 6, 6)}


# The start.


@pytest.mark.parametrize("ablation", [None, "no_position"])
@pytest.mark.parametrize("init", ["zero", "zero_left"])
def test_a_zero_start_is_the_base_and_has_a_gradient_on_one_side(init, ablation):
    base, given = TINY["llama"]().eval(), batch("llama")
    before = base(**given).logits
    model = get_peft_model(base, LmamConfig(length=6, init=init, ablation=ablation))
    after = model(**given).logits
    assert torch.equal(after, before)
    after.square().sum().backward()
    learns, rests = ("lora_w_a", "lora_w_b") if init == "zero_left" else ("lora_w_b", "lora_w_a")
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert all(g.any() for n, g in gradients.items() if learns in n)
    assert not any(g.any() for n, g in gradients.items() if rests in n)
    assert len(gradients) == 4  # two factors in each of two layers


@pytest.mark.first
def test_a_full_rank_map_changes_nothing_before_it_learns_like_the_map_it_is_set_against():
    base, given = TINY["llama"]().eval(), batch("llama")
    before = base(**given).logits
    model = get_peft_model(base, LmamConfig(length=6, ablation="full_rank"))
    after = model(**given).logits
    assert torch.equal(after, before)
    after.square().sum().backward()
    gradients = [p.grad for name, p in model.named_parameters() if "lora_w" in name]
    assert all(gradient is not None and gradient.any() for gradient in gradients)


def test_a_map_that_started_left_adds_nothing_beyond_the_rows_it_learned_from():
    # One layer, because those above a changed layer read other inputs at every position.
    base = TINY["llama"](num_hidden_layers=1)
    model = get_peft_model(base, LmamConfig(length=12, heads=1, init="zero_left")).eval()
    ids = torch.randint(5, 90, (2, 12))
    with torch.no_grad(), model.disable_adapter():
        without = model(ids).logits
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=ids[:, :8], labels=ids[:, :8]).loss.backward()
        optimizer.step()
    with torch.no_grad():
        learned = model(ids).logits
    assert torch.equal(learned[:, 8:], without[:, 8:])
    assert not torch.equal(learned[:, :8], without[:, :8])


# Dtype and device of the factors.


def test_training_in_half_precision_is_warned_of_once():
    model = get_peft_model(TINY["llama"](), LmamConfig(length=6))
    factors = [p for n, p in model.named_parameters() if "lora_w_" in n]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        model.train()
        for factor in factors:
            factor.data = factor.data.bfloat16()
        model.eval()
        assert not said
        for _ in range(2):
            model.train()
        assert ["bfloat16" in str(each.message) for each in said] == [True]
        model.eval().requires_grad_(False).train()
        assert len(said) == 1, [str(each.message) for each in said]


def test_a_map_that_was_loaded_with_little_memory_can_be_moved(tmp_path):
    model, given = moved(TINY["llama"](), LmamConfig(length=6)), batch("llama")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(TINY["llama"](), tmp_path, low_cpu_mem_usage=True).eval()
    for layer in [m for m in loaded.modules() if isinstance(m, LmamLayer)]:
        assert torch.equal(layer._pe["default"], position_embedding(6, torch.zeros(())))
    assert_close(logits(loaded.to("cpu"), given), logits(model, given))


def test_a_map_that_still_learns_is_not_baked():
    model = get_peft_model(TINY["llama"](), LmamConfig(length=6, init_weights=False)).train()
    model.base_model.bake()
    for name, parameter in model.named_parameters():
        if "lora_w_a" in name:
            parameter.data *= -1
    given = batch("llama")
    learned = logits(model.eval(), given)
    model.base_model.bake()
    assert_close(logits(model, given), learned)


def test_a_model_of_two_kinds_of_attention_gets_maps_where_they_can_be(tmp_path):
    """MiniMax has linear attention of the same name in every other layer."""
    config = MiniMaxConfig(
        vocab_size=99, hidden_size=32, intermediate_size=8, num_hidden_layers=4, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    model = moved(MiniMaxForCausalLM(config), LmamConfig(length=6))
    saved = get_peft_model_state_dict(model)
    assert {name.split(".")[4] for name in saved} == {"0", "2"}  # those of full attention
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(MiniMaxForCausalLM(config), tmp_path)
    loaded = get_peft_model_state_dict(again)
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn, which is not a self-attention"):
        get_peft_model(MiniMaxForCausalLM(config), LmamConfig(layers_to_transform=[0, 1]))


@pytest.mark.parametrize(("asked", "expected"), [("0.4x", 4e-4), (0.05, 0.05), (None, 1e-3)])
def test_the_rate_of_a_map_is_its_own_a_multiple_or_that_of_all(asked, expected):
    assert LmamConfig(map_learning_rate=asked).rate_beside(1e-3) == pytest.approx(expected)
