"""What a run measures and admits: held-out rows, when it stops, the last update, strict JSON."""

import json
import math
import shutil
from functools import partial

import pytest
from folders import adapter_weights, refused, rows_file
from safetensors.torch import load_file
from trained_runs import QUICK, SAVED, PressCtrlC, assert_same, before_its_end, run_recipe
from transformers import TrainerCallback

from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.runs.result import RunResult, write_result
from lorada.training.arguments import training_arguments
from lorada.training.callbacks import DivergedError
from lorada.training.train import train

recipe = partial(run_recipe, [*QUICK, "max_new_tokens=4"], rows="rows", method="lorada_la")
# Held-out rows with the other label: what is learned makes them worse from the first step on.
TEXTS = ["ab", "cd", "abab", "cdcd"]
ROW_FILES = {
    "learned": [{"text": text, "label": "yn"[i % 2]} for i, text in enumerate(TEXTS)] * 4,
    "wrong": [{"text": text, "label": "ny"[i % 2]} for i, text in enumerate(TEXTS)],
}


def test_rows_kept_back_are_measured_after_each_epoch_and_change_nothing(place, tmp_path):
    """The tiny LLaMA has dropout, which a loader of held-out rows took random numbers from."""
    measured, alone = (
        train(recipe(place, tmp_path / name, "dev_rows=20", *own), quiet=True)
        for name, own in (("measured", ()), ("alone", ("eval_strategy=no",)))
    )
    history = measured.result.history
    assert [e["step"] for e in history if "eval_loss" in e] == [4, 8, 12]
    assert all(0 < e["eval_loss"] < 10 for e in history if "eval_loss" in e)
    assert not any("eval_loss" in entry for entry in alone.result.history)
    assert_same(adapter_weights(measured.run), adapter_weights(alone.run))


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
    "at the end of an epoch, where weights alone are saved": (8, "save_only_model=true"),
}  # fmt: skip


@pytest.mark.parametrize("case", STOPS)
def test_a_checkpoint_of_a_stop_is_kept_and_goes_on_bit_for_bit(place, tmp_path, case):
    at, *settings = STOPS[case]
    settings = ("dev_rows=20", "logging_steps=1", *settings)
    whole = train(recipe(place, tmp_path / "whole", *settings), quiet=True)
    part = recipe(place, tmp_path / "part", *settings)
    assert train(part, quiet=True, callbacks=[PressCtrlC(at - 1)]).interrupted
    resumed = train(part, resume=True, quiet=True)
    assert resumed.result.resumed_from == f"checkpoint-{at}"
    assert resumed.result.history == whole.result.history
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
    history = train(recipe(place, tmp_path / "run", *late), quiet=True).result.history
    assert [e["step"] for e in history if "eval_loss" in e] == [3]


def test_the_held_out_loss_is_the_one_of_evaluate(place, tmp_path):
    """Rows of unlike length in batches of unlike size: each token counts the same."""
    rows = [{"prompt": "a", "response": "b" * (1 + 5 * (n % 4))} for n in range(7)]
    data = str(rows_file(tmp_path / "rows.jsonl", rows))
    watched = recipe(
        place, tmp_path / "run", f"eval_data={data}", "eval_strategy=epoch", "max_steps=2",
        "per_device_eval_batch_size=3",
    )  # fmt: skip
    (entry,) = [e for e in train(watched, quiet=True).result.history if "eval_loss" in e]
    assert evaluate(load_run(tmp_path / "run"))["loss"] == pytest.approx(entry["eval_loss"], 1e-5)


class Break(TrainerCallback):
    """Puts a number that is none into a weight at an event of a step, such as its update."""

    def __init__(self, event, step, value):
        self.step, self.value = step, value
        setattr(self, event, self.break_weight)

    def break_weight(self, args, state, control, model, **kwargs):
        if state.global_step + 1 == self.step:
            next(p for p in model.parameters() if p.requires_grad).data[0] = self.value


@pytest.mark.parametrize(
    ("value", "strategy"), [(math.nan, "steps"), (math.inf, "epoch"), (math.nan, "no")]
)
def test_what_the_last_update_breaks_is_not_saved(place, tmp_path, value, strategy):
    run = tmp_path / "run"
    wild = recipe(place, run, "max_steps=4", "save_steps=2", f"save_strategy={strategy}")
    act = partial(train, wild, quiet=True, callbacks=[Break("on_optimizer_step", 4, value)])
    refused("is not finite after step 4.*learning_rate", act, DivergedError)
    assert not (run / "adapter").exists()
    assert not (run / "result.json").exists()
    assert not (run / "checkpoint-4").exists()


def test_a_nan_stops_the_run_says_the_step_and_keeps_the_last_checkpoint(place, tmp_path):
    wild = recipe(place, tmp_path / "run", "max_steps=9", "save_steps=2")
    act = partial(train, wild, quiet=True, callbacks=[Break("on_step_begin", 5, math.nan)])
    # checkpoint-4's own weights gave the NaN as far as anyone can tell, so the one before counts.
    refused("became nan at step 5; .*checkpoint-2.*learning_rate", act, DivergedError)
    kept = load_file(tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert not (tmp_path / "run" / "adapter").exists()


def test_numbers_that_json_lacks_are_null(tmp_path):
    history = [{"loss": math.nan, "step": 3}, {"loss": math.inf, "step": 4}]
    write_result(tmp_path, RunResult(labels=[], form="prompt", metrics={}, history=history))
    text = (tmp_path / "result.json").read_text()
    saved = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert saved["history"] == [{"loss": None, "step": 3}, {"loss": None, "step": 4}]


EARLY = [*QUICK, "early_stopping=2", "eval_steps=2", "learning_rate=3e-2", "max_steps=40",
         "lr_scheduler_type=constant", "warmup_steps=0", "save_total_limit=9"]  # fmt: skip


@pytest.fixture(scope="module")
def asked(place):
    wrong = str(place / "wrong.jsonl")
    given = {"model": "bert", "rows": "learned", "method": "lora", "eval_data": wrong}
    return lambda output, *pairs: run_recipe(EARLY, place, output, *pairs, **given)


@pytest.fixture(scope="module")
def stopped(asked, place):
    """A run that stopped early."""
    return train(asked(place / "stopped"), quiet=True)


def test_it_stops_after_so_many_worse_evaluations_and_keeps_the_best(stopped):
    losses = [e["eval_loss"] for e in stopped.result.history if "eval_loss" in e]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2
    assert stopped.result.steps == 2 * len(losses) < 40
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
    assert again.resumed_from == ("checkpoint-2" if when == "before its end" else "checkpoint-6")
    assert (again.steps, again.history) == (stopped.result.steps, stopped.result.history)
    assert_same(adapter_weights(run), adapter_weights(stopped.run))


def test_without_held_out_rows_and_beside_other_wishes_it_is_refused(asked, tmp_path):
    def arguments(*pairs, **changes):
        recipe = asked(tmp_path / "run", *pairs).model_copy(update=changes)
        return lambda: training_arguments(recipe)

    said = "early_stopping=2 needs held-out rows that are measured: pass eval_data=FILE or"
    refused(said, arguments(eval_data=None))
    refused(said, arguments("eval_strategy=no"))
    recipe = asked(tmp_path / "run").model_copy(update={"eval_data": None, "dev_rows": 2})
    del recipe.training["eval_steps"]
    args = training_arguments(recipe)
    assert (args.eval_strategy, args.save_strategy, args.load_best_model_at_end) == (
        "epoch", "epoch", True,
    )  # fmt: skip
