"""What a run measures and admits: held-out rows, the last update, strict JSON, no step at all."""

import json
import math
import shutil
from functools import partial

import pytest
from folders import adapter_weights, refused, rows_file
from test_train import PressCtrlC
from trained import QUICK, assert_same, run_recipe
from transformers import TrainerCallback

from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.runs.result import read_result, write_result
from lorada.training.callbacks import DivergedError
from lorada.training.train import train

recipe = partial(run_recipe, [*QUICK, "max_new_tokens=4"], rows="rows", method="lorada_la")


@pytest.fixture(scope="module")
def kept_back(place):
    """A run that kept 20 of 36 rows back, and one that did not measure them."""
    run = train(recipe(place, place / "kept", "dev_rows=20", "save_steps=4"), quiet=True)
    without = recipe(place, place / "without", "dev_rows=20", "eval_strategy=no")
    return run, train(without, quiet=True)


def test_rows_that_are_kept_back_are_measured_after_each_epoch(kept_back):
    history = kept_back[0].result["history"]
    assert [e["step"] for e in history if "eval_loss" in e] == [4, 8, 12]
    assert all(0 < e["eval_loss"] < 10 for e in history if "eval_loss" in e)


def test_measuring_changes_nothing_of_the_training(kept_back):
    """The tiny LLaMA has dropout, which a loader of held-out rows took random numbers from."""
    measured, alone = kept_back
    assert not any("eval_loss" in entry for entry in alone.result["history"])
    assert_same(adapter_weights(measured.run), adapter_weights(alone.run))


def test_a_resumed_run_lacks_no_measurement(place, kept_back, tmp_path):
    run = shutil.copytree(kept_back[0].run, tmp_path / "run")
    before = read_result(run)
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoint-12")
    again = recipe(place, run, "dev_rows=20", "save_steps=4")
    resumed = train(again, resume=True, quiet=True)
    assert resumed.result["resumed_from"] == "checkpoint-8"
    assert resumed.result["history"] == before["history"]
    assert_same(adapter_weights(run), adapter_weights(kept_back[0].run))


WORST = ("metric_for_best_model=loss", "greater_is_better=true")  # the first measurement is kept
STOPS = {
    "beside a better one, of one that is kept": (
        5, "save_steps=2", "eval_strategy=steps", "eval_steps=2", "save_total_limit=1",
        "load_best_model_at_end=true", *WORST,
    ),
    "where only better ones are saved": (
        5, "eval_strategy=steps", "eval_steps=1", "save_strategy=best", *WORST,
    ),
    "within an epoch": (5, "eval_strategy=epoch", "save_strategy=epoch", *WORST),
    "at the end of an epoch": (8, "eval_strategy=epoch", "save_steps=100", *WORST),
    "where weights alone are saved": (5, "save_only_model=true", "save_steps=3"),
}  # fmt: skip


@pytest.mark.parametrize("case", STOPS)
def test_a_checkpoint_of_a_stop_is_kept_and_goes_on_bit_for_bit(place, tmp_path, case):
    at, *settings = STOPS[case]
    settings = ("dev_rows=20", "logging_steps=1", *settings)
    whole = train(recipe(place, tmp_path / "whole", *settings), quiet=True)
    part = recipe(place, tmp_path / "part", *settings)
    assert train(part, quiet=True, callbacks=[PressCtrlC(at - 1)]).interrupted
    resumed = train(part, resume=True, quiet=True)
    assert resumed.result["resumed_from"] == f"checkpoint-{at}"
    assert resumed.result["history"] == whole.result["history"]
    assert_same(adapter_weights(resumed.run), adapter_weights(whole.run))


def test_a_checkpoint_without_an_optimizer_is_not_gone_on_from(place, tmp_path):
    asked = recipe(place, tmp_path / "run", "max_steps=4", "save_steps=2", "save_only_model=true")
    run = train(asked, quiet=True).run
    before = adapter_weights(run)
    (run / "result.json").unlink()
    resumed = train(asked, resume=True, quiet=True)  # from its last step, so nothing is trained
    assert_same(adapter_weights(resumed.run), before)
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoint-4")
    said = "checkpoint-2 has weights without an optimizer, .*: start again with --overwrite"
    refused(said, lambda: train(asked, resume=True, quiet=True))


def test_rows_that_are_never_reached_by_eval_steps_are_measured_at_the_end(place, tmp_path):
    late = ("dev_rows=20", "max_steps=3", "eval_strategy=steps", "eval_steps=500")
    history = train(recipe(place, tmp_path / "run", *late), quiet=True).result["history"]
    assert [e["step"] for e in history if "eval_loss" in e] == [3]


def test_the_held_out_loss_is_the_one_of_evaluate(place, tmp_path):
    """Rows of unlike length in batches of unlike size: each token counts the same."""
    rows = [{"prompt": "a", "response": "b" * (1 + 5 * (n % 4))} for n in range(7)]
    data = str(rows_file(tmp_path / "rows.jsonl", rows))
    watched = recipe(
        place, tmp_path / "run", f"eval_data={data}", "eval_strategy=epoch", "max_steps=2",
        "per_device_eval_batch_size=3",
    )  # fmt: skip
    (entry,) = [e for e in train(watched, quiet=True).result["history"] if "eval_loss" in e]
    assert evaluate(load_run(tmp_path / "run"))["loss"] == pytest.approx(entry["eval_loss"], 1e-5)


class Break(TrainerCallback):
    """Puts a number that is none into a weight, as the update of a step may do."""

    def __init__(self, step, value):
        self.step, self.value = step, value

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step + 1 == self.step:
            next(p for p in model.parameters() if p.requires_grad).data[0] = self.value


@pytest.mark.parametrize(
    ("value", "strategy"), [(math.nan, "steps"), (math.inf, "epoch"), (math.nan, "no")]
)
def test_what_the_last_update_breaks_is_not_saved(place, tmp_path, value, strategy):
    run = tmp_path / "run"
    wild = recipe(place, run, "max_steps=4", "save_steps=2", f"save_strategy={strategy}")
    act = partial(train, wild, quiet=True, callbacks=[Break(4, value)])
    refused("is not finite after step 4.*learning_rate", act, DivergedError)
    assert not (run / "adapter").exists()
    assert not (run / "result.json").exists()
    assert not (run / "checkpoint-4").exists()


NO_STEPS = {
    "num_train_epochs=0": "num_train_epochs=0 must be above 0",
    "max_steps=-3": "max_steps=-3 must be above 0",
    "dataloader_drop_last=true per_device_train_batch_size=64": "leaves no batch of 36 rows",
}


@pytest.mark.parametrize("settings", NO_STEPS)
def test_a_training_without_a_step_is_refused(place, tmp_path, settings):
    asked = recipe(place, tmp_path / "run", *settings.split())
    refused(NO_STEPS[settings], lambda: train(asked, quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["choice", "score"])
def test_labels_are_not_smoothed_where_there_are_none(place, tmp_path, form):
    model, row = {
        "choice": ("llama", {"prompt": "a", "candidates": ["b", "c"], "answer": 0}),
        "score": ("bert", {"text": "a", "score": 1}),
    }[form]
    own = {"model": model, "data": str(rows_file(tmp_path / "r.jsonl", [row])), "method": "lora"}
    asked = recipe(place, tmp_path / "run", "label_smoothing_factor=0.1", **own)
    said = "label_smoothing_factor=0.1 is for classes and texts"
    refused(said, lambda: train(asked, quiet=True))


def test_numbers_that_json_lacks_are_null(kept_back, tmp_path):
    run = shutil.copytree(kept_back[0].run, tmp_path / "run")
    result = read_result(run)
    result["metrics"] = {"a": {"loss": float("nan"), "n": 3}, "b": [float("inf"), 1.5]}
    write_result(run, result)
    text = (run / "result.json").read_text()
    saved = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert saved["metrics"] == {"a": {"loss": None, "n": 3}, "b": [None, 1.5]}
