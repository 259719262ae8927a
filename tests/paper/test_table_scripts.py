"""Rows whose settings the paper does not print have those of their methods' own scripts."""

from pathlib import Path

import pytest
from table_rows import config_of, made, row_of

from lorada.methods.build import build_method
from lorada.paper.table_spec import load_table, row_recipe
from lorada.training.arguments import training_arguments
from lorada.training.parameter_counts import counts_of


def test_the_norms_that_train_with_sora_are_counted():
    recipe, _ = made(11, "sora", ["rte"])
    # Of A and B, of the gates, and of the two norms of each layer.
    assert counts_of(recipe)["trainable"] == 1_327_104 + 576 + 12 * 2 * 2 * 768


# jxhe/unify-parameter-efficient-tuning, exps/run_xsum.sh and run_en_ro.sh: max_eval_samples,
# save_steps (which are eval_steps too), metric, greater_is_better.
CHOSEN = {"xsum": (1600, 3000, "rouge2", True), "wmt16_en_ro": (1600, 5000, "loss", False)}


@pytest.mark.parametrize("key", ["full", "lora", "prefix_lora", "mam", "autopeft", "lorada_a"])
@pytest.mark.parametrize("task", CHOSEN)
def test_the_best_checkpoint_of_xsum_and_mt_is_chosen_as_in_the_scripts_of_he_et_al(key, task):
    recipe = row_recipe(load_table("table10"), row_of(10, key), "paper", [task], 1, Path("-"))
    training = training_arguments(recipe, {}, quiet=True)
    rows, steps, metric, greater = CHOSEN[task]
    assert recipe.dev_rows == rows
    assert training.eval_steps == training.save_steps == steps
    assert (training.eval_strategy, training.save_strategy) == ("steps", "steps")
    assert training.load_best_model_at_end
    assert (training.metric_for_best_model, training.greater_is_better) == (metric, greater)


@pytest.mark.parametrize("key", ["lora", "prefix_lora"])
@pytest.mark.parametrize("task", CHOSEN)
def test_lora_on_the_ffn_is_scaled_by_four_as_table_5_of_he_et_al_prints(key, task):
    recipe, parts = made(10, key, [task])
    by_name = build_method(key, config_of(recipe.model)).config.parts[-1]
    for lora in (parts["lora"], by_name):
        assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (102, 4 * 102, 0.1)
        assert lora.target_modules == {"fc1", "fc2"}
