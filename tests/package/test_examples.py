"""The programs of examples/ do what they say."""

import runpy

import pytest
import torch
from folders import ROWS, adapter_weights, llama_folder, rows_file
from paths import ROOT
from safetensors.torch import load_file
from trained_runs import run_recipe

from lorada.functional import add_map_reference, apply_map, low_rank_map, mask_map
from lorada.training.train import train


@pytest.mark.fp64(False)
def test_a_training_by_hand_learns_what_the_command_learns(tmp_path):
    llama_folder(tmp_path / "llama", attention_dropout=0.0)
    rows_file(tmp_path / "llama.jsonl", ROWS)
    program = runpy.run_path(str(ROOT / "examples/train_by_hand.py"))
    by_hand = tmp_path / "by hand"
    program["main"](tmp_path / "llama", tmp_path / "llama.jsonl", by_hand)
    recipe = run_recipe(["report_to=[]"], tmp_path, tmp_path / "run", method="lorada_la")
    train(recipe, quiet=True)
    learned = load_file(by_hand / "adapter_model.safetensors")
    expected = adapter_weights(tmp_path / "run")
    assert learned.keys() == expected.keys()
    # 15 steps of 1e-3 move a weight by up to 0.015; rounding is 1e-8 of a weight near 1.
    for name, weight in learned.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0, msg=name)


@pytest.fixture
def minimal():
    """The names of the program that shows the paper's idea."""
    return runpy.run_path(str(ROOT / "examples/minimal_lmam.py"))


@pytest.mark.parametrize("tokens", [5, 8, 13], ids=["shorter", "as long", "longer"])
@pytest.mark.parametrize("form", ["attention_as_printed", "attention_beside_kernel"])
def test_the_minimal_map_has_the_values_and_gradients_of_the_library(form, tokens, minimal):
    w_a, w_b = torch.randn(2, 8, 3), torch.randn(2, 3, 8)
    query, key, value = torch.randn(3, 2, 4, tokens, 6)
    ours = [weight.clone().requires_grad_() for weight in (w_a, w_b, query, key, value)]
    theirs = [weight.clone().requires_grad_() for weight in (w_a, w_b, query, key, value)]

    attn_s = minimal["low_rank_map"](ours[0], ours[1], s=0.5)
    output = minimal[form](*ours[2:], attn_s)

    later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    scores = theirs[2] @ theirs[3].mT / 6**0.5
    attention = scores.masked_fill(later, -torch.inf).softmax(-1)
    expected_map = low_rank_map(theirs[0], theirs[1], inverse_scale=2.0)
    expected = add_map_reference(attention, expected_map, causal=True) @ theirs[4]

    torch.testing.assert_close(attn_s, expected_map)
    torch.testing.assert_close(output, expected)
    upstream = torch.randn_like(output)
    gradients = torch.autograd.grad(output, ours, upstream)
    expected_gradients = torch.autograd.grad(expected, theirs, upstream)
    torch.testing.assert_close(gradients, expected_gradients)


def test_the_minimal_term_is_the_product_that_the_library_adds_beside_a_kernel(minimal):
    w_a, w_b, value = torch.randn(2, 8, 3), torch.randn(2, 3, 8), torch.randn(2, 4, 8, 6)
    attn_s = minimal["low_rank_map"](w_a, w_b)
    term = minimal["fit_to_text"](attn_s, 4, 8) @ value
    torch.testing.assert_close(term, apply_map(mask_map(attn_s, True, None), value, 4))


@pytest.mark.fp64(False)
def test_the_minimal_map_teaches_a_frozen_transformer_which_place_to_look_at(minimal, capsys):
    minimal["main"]()
    lines = capsys.readouterr().out.splitlines()
    without_map, with_map = (int(line.split("%")[0].split()[-1]) for line in lines[1:3])
    # A bag of up to 12 tokens does not tell which of them stood third; a map of rank 2 does.
    assert without_map < 40
    assert with_map > 95
