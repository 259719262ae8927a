"""Rows whose settings the paper does not print have those of their methods' own scripts."""

from pathlib import Path

import pytest
from table_rows import config_of, made, row_of

from lorada.experiments.estimate import ROWS
from lorada.experiments.table_spec import counts_of, load_table, row_recipe
from lorada.methods.build import build_method
from lorada.runs.training.arguments import training_arguments

COMMONSENSE = [
    "boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa",
]  # fmt: skip

# QingruZhang/AdaLoRA, NLU/scripts/run_debertav3_TASK.sh: first steps without pruning, last ones at
# the target, steps from one pruning to the next; α, weight of the regulariser; rate, epochs,
# warm-up, weight decay; tokens.
ADALORA = {
    "cola": (800, 3500, 10, 32, 0.1, 8e-4, 25, 100, 0.0, 64),
    "mnli": (8000, 50000, 100, 16, 0.1, 5e-4, 7, 1000, 0.0, 256),
    "mrpc": (600, 1800, 1, 32, 0.1, 1e-3, 30, 0.1, 0.01, 320),
    "qnli": (2000, 8000, 100, 32, 0.1, 5e-4, 5, 500, 0.01, 512),
    "qqp": (8000, 25000, 100, 16, 0.1, 8e-4, 5, 2000, 0.01, 320),
    "rte": (600, 1800, 1, 32, 0.3, 1.2e-3, 50, 200, 0.01, 320),
    "sst2": (6000, 22000, 100, 16, 0.1, 8e-4, 24, 1000, 0.01, 128),
    "stsb": (800, 2000, 10, 32, 0.3, 2.2e-3, 25, 100, 0.1, 128),
}


def adam(recipe):
    """β₁, β₂, ε, which are transformers' own where a script sets none."""
    own = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, **recipe.training}
    return own["adam_beta1"], own["adam_beta2"], own["adam_epsilon"]


@pytest.mark.parametrize("task", ADALORA)
def test_adalora_has_the_schedule_of_its_script_for_each_task(task):
    recipe, parts = made(11, "adalora", [task])
    part, training = parts["adalora"], recipe.training
    assert (
        part.tinit, part.tfinal, part.deltaT, part.lora_alpha, part.orth_reg_weight,
        training["learning_rate"], training["num_train_epochs"], training["warmup_steps"],
        training["weight_decay"], recipe.max_length,
    ) == ADALORA[task]  # fmt: skip
    # Not those of the scripts, which are for another budget.
    assert (part.init_r, part.target_r) == (12, 8)
    assert (part.beta1, part.beta2) == (0.85, 0.85)
    assert training["per_device_train_batch_size"] == 32
    assert adam(recipe) == (0.9, 0.999, 1e-8)
    assert training["lr_scheduler_type"] == "linear"


@pytest.mark.parametrize("task", ADALORA)
def test_adalora_has_steps_left_to_prune_in_on_the_real_rows(task):
    recipe, parts = made(11, "adalora", [task])
    steps = recipe.training["num_train_epochs"] * -(-ROWS[task] // 32)
    assert parts["adalora"].tinit + parts["adalora"].tfinal < 0.9 * steps


@pytest.mark.parametrize("task", ADALORA)
def test_sora_has_the_settings_of_its_script_without_a_schedule(task):
    recipe, parts = made(11, "sora", [task])
    part, training = parts["sora"], recipe.training
    assert (part.rank, part.alpha, part.dropout, part.penalty) == (8, 16, 0, 10)
    assert part.modules_to_save == ["output.LayerNorm"]
    assert training["learning_rate"] == 8e-4
    assert training["per_device_train_batch_size"] == 8
    assert training["num_train_epochs"] == 20
    assert (training["weight_decay"], training["warmup_steps"]) == (0.1, 0.06)
    assert training["max_grad_norm"] == 0.1
    assert training["lr_scheduler_type"] == "linear"
    assert adam(recipe) == (0.9, 0.999, 1e-8)
    assert recipe.max_length == 128


def test_the_norms_that_train_with_sora_are_counted():
    recipe, _ = made(11, "sora", ["rte"])
    # Of A and B, of the gates, and of the two norms of each layer.
    assert counts_of(recipe)["trainable"] == 1_327_104 + 576 + 12 * 2 * 2 * 768


@pytest.mark.parametrize(("key", "length"), [("llama-7b/prefix", 30), ("llama-13b/prefix", 10)])
def test_prefix_on_llama_starts_and_learns_as_in_llm_adapters(key, length):
    recipe, parts = made(4, key, COMMONSENSE)
    prefix = parts["prefix"]
    assert (prefix.length, prefix.initial_std, prefix.projection) == (length, 1.0, None)
    assert recipe.training["learning_rate"] == 3e-2


@pytest.mark.parametrize("key", ["lora", "mam", "lorada_a"])
@pytest.mark.parametrize(
    ("task", "expected"), [("xsum", (0.9, 0.999, 1e-8)), ("wmt16_en_ro", (0.9, 0.98, 1e-6))]
)
def test_adam_on_xsum_and_mt_is_that_of_the_scripts_of_he_et_al(key, task, expected):
    assert adam(made(10, key, [task])[0]) == expected


# jxhe/unify-parameter-efficient-tuning, exps/run_xsum.sh and run_en_ro.sh: max_eval_samples,
# save_steps (which are eval_steps too), metric, greater_is_better.
CHOSEN = {"xsum": (1600, 3000, "rouge2", True), "wmt16_en_ro": (1600, 5000, "loss", False)}


@pytest.mark.parametrize("key", ["full", "lora", "prefix_lora", "mam", "autopeft", "lorada_a"])
@pytest.mark.parametrize("task", CHOSEN)
def test_the_best_checkpoint_of_xsum_and_mt_is_chosen_as_in_the_scripts_of_he_et_al(key, task):
    recipe = row_recipe(load_table("table10"), row_of(10, key), "paper", [task], 1, Path("-"))
    training = training_arguments(recipe, {}, quiet=True, writes=True)
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


@pytest.mark.parametrize("task", ["xsum", "wmt16_en_ro"])
def test_pfeiffers_adapter_is_the_same_on_bart_and_mbart(task):
    _, parts = made(10, "pfeiffer", [task])
    assert (parts["bottleneck"].placement, parts["bottleneck"].rank) == ("pfeiffer", 600)
