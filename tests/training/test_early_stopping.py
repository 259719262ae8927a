"""``early_stopping``: a training stops when held-out rows get no better, and keeps the best."""

import shutil

import pytest
from folders import adapter_weights, refused
from safetensors.torch import load_file
from trained import QUICK, SAVED, assert_same, before_its_end, run_recipe

from lorada.training.arguments import training_arguments
from lorada.training.train import train

# Held-out rows with the other label: what is learned makes them worse from the first step on.
TEXTS = ["ab", "cd", "abab", "cdcd"]
ROW_FILES = {
    "learned": [{"text": text, "label": "yn"[i % 2]} for i, text in enumerate(TEXTS)] * 4,
    "wrong": [{"text": text, "label": "ny"[i % 2]} for i, text in enumerate(TEXTS)],
}
SETTINGS = [*QUICK, "early_stopping=2", "eval_steps=2", "learning_rate=3e-2", "max_steps=40",
            "lr_scheduler_type=constant", "warmup_steps=0", "save_total_limit=9"]  # fmt: skip


@pytest.fixture(scope="module")
def asked(place):
    wrong = str(place / "wrong.jsonl")
    given = {"model": "bert", "rows": "learned", "method": "lora", "eval_data": wrong}
    return lambda output, *pairs: run_recipe(SETTINGS, place, output, *pairs, **given)


@pytest.fixture(scope="module")
def stopped(asked, place):
    """A run that stopped early."""
    return train(asked(place / "stopped"), quiet=True)


def test_it_stops_after_so_many_worse_evaluations_and_keeps_the_best(stopped):
    losses = [e["eval_loss"] for e in stopped.result["history"] if "eval_loss" in e]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2
    assert stopped.result["steps"] == 2 * len(losses) < 40
    kept = load_file(stopped.run / f"checkpoint-{2 * (best + 1)}" / "adapter_model.safetensors")
    assert_same(adapter_weights(stopped.run), kept)


@pytest.mark.parametrize("when", ["before its end", "at its end"])
def test_a_run_that_is_resumed_stops_at_the_same_step_with_the_same_weights(
    asked, stopped, tmp_path, when
):
    if when == "at its end":
        run = shutil.copytree(stopped.run, tmp_path / "run")
        for name in SAVED:
            shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink(True)
    else:
        run = before_its_end(stopped.run, tmp_path / "run")
    again = train(asked(run), quiet=True, resume=True).result
    assert again["resumed_from"] == ("checkpoint-2" if when == "before its end" else "checkpoint-6")
    assert (again["steps"], again["history"]) == (
        stopped.result["steps"],
        stopped.result["history"],
    )
    assert_same(adapter_weights(run), adapter_weights(stopped.run))


def test_without_held_out_rows_and_beside_other_wishes_it_is_refused(asked, tmp_path):
    def arguments(*pairs, **changes):
        recipe = asked(tmp_path / "run", *pairs).model_copy(update=changes)
        return lambda: training_arguments(recipe)

    said = "early_stopping=2 needs held-out rows that are measured: pass eval_data=FILE or"
    refused(said, arguments(eval_data=None))
    refused(said, arguments("eval_strategy=no"))
    refused("save and eval strategy to match", arguments("save_strategy=no"))
    refused("saving steps to be a round multiple of the evaluation", arguments("save_steps=3"))
    recipe = asked(tmp_path / "run").model_copy(update={"eval_data": None, "dev_rows": 2})
    del recipe.training["eval_steps"]
    args = training_arguments(recipe)
    assert (args.eval_strategy, args.save_strategy, args.load_best_model_at_end) == (
        "epoch", "epoch", True,
    )  # fmt: skip
