"""Training runs on tiny local models: what is written, resumed, stopped and refused."""

import json
import math
import os
import signal

import pytest
import torch
from folders import ROWS, adapter_weights, bert_folder, llama_folder, rows_file
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    TrainerCallback,
)

from lorada.inference.evaluate import evaluate
from lorada.inference.generate import generate
from lorada.inference.load import load_run
from lorada.runs.folder.result import read_result
from lorada.runs.recipe import load_recipe
from lorada.runs.training import setup
from lorada.runs.training.callbacks import DivergedError
from lorada.runs.training.train import train

TRAINING = [
    "training.per_device_train_batch_size=4", "training.report_to=[]", "training.logging_steps=2",
    "max_length=32",
]  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(llama_folder(tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture
def data(tmp_path):
    return str(rows_file(tmp_path / "rows.jsonl"))


def recipe(llama, data, output, *overrides, **options):
    fixed = {"method": "lorada_la", "model": llama, "data": data, "output": str(output)}
    return load_recipe(None, [*TRAINING, *overrides], {**fixed, **options})


def test_a_run_leaves_an_adapter_a_card_and_a_result(llama, data, tmp_path):
    trained = train(recipe(llama, data, tmp_path / "run", "max_steps=6"), quiet=True)
    run = trained.run
    assert {p.name for p in (run / "adapter").iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "README.md",
    }  # fmt: skip
    assert "import lorada" in (run / "adapter" / "README.md").read_text()
    result = json.loads((run / "result.json").read_text())
    expected = {
        "recipe", "method", "model", "task", "seed", "data", "versions", "hardware", "parameters",
        "steps", "wall_time_s", "peak_memory_bytes", "effect_size", "metrics", "history",
    }  # fmt: skip
    assert expected <= result.keys()
    assert result["steps"] == 6
    assert result["effect_size"] > 0
    assert [entry["step"] for entry in result["history"]] == [2, 4, 6]
    count = sum(tensor.numel() for tensor in adapter_weights(run).values())
    assert result["parameters"]["trainable"] == count


def test_the_loss_falls(llama, data, tmp_path):
    settings = ("num_train_epochs=6", "learning_rate=1e-2")
    trained = train(recipe(llama, data, tmp_path / "run", *settings, method="full"), quiet=True)
    losses = [entry["loss"] for entry in trained.result["history"]]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_stock_peft_loads_the_adapter_of_a_run(llama, data, tmp_path):
    run = train(recipe(llama, data, tmp_path / "run", "max_steps=4"), quiet=True).run
    base = AutoModelForCausalLM.from_pretrained(llama)
    ids = torch.arange(3, 12)[None]
    before = base(ids).logits
    loaded = PeftModel.from_pretrained(base, str(run / "adapter"))
    assert (loaded(ids).logits - before).abs().max() > 1e-4


class PressCtrlC(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def with_callback(monkeypatch, callback):
    build = setup.make_trainer

    def build_with_callback(*args):
        trainer = build(*args)
        trainer.add_callback(callback)
        return trainer

    monkeypatch.setattr(setup, "make_trainer", build_with_callback)


@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_ctrl_c_saves_and_resume_continues_bit_for_bit(llama, data, tmp_path, monkeypatch, order):
    handler = signal.getsignal(signal.SIGINT)
    settings = ("max_steps=9", f"training.train_sampling_strategy={order}")
    whole = train(recipe(llama, data, tmp_path / "whole", *settings), quiet=True)
    part = recipe(llama, data, tmp_path / "part", *settings)
    with monkeypatch.context() as patch:
        with_callback(patch, PressCtrlC(4))
        stopped = train(part, quiet=True)
    assert stopped.interrupted
    assert (stopped.run / "checkpoint-5").is_dir()
    assert not (stopped.run / "result.json").exists()
    resumed = train(part, resume=True, quiet=True)
    expected, actual = adapter_weights(whole.run), adapter_weights(resumed.run)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    assert signal.getsignal(signal.SIGINT) is handler


def test_resume_after_the_last_checkpoint_trains_no_further(llama, data, tmp_path):
    last = recipe(llama, data, tmp_path / "run", "max_steps=4", "save_steps=4")
    run = train(last, quiet=True).run
    expected = adapter_weights(run)
    (run / "result.json").unlink()
    resumed = train(last, resume=True, quiet=True)
    assert resumed.result["steps"] == 4
    assert resumed.result["effect_size"] > 0
    assert resumed.result["resumed_from"] == "checkpoint-4"
    assert all(torch.equal(tensor, adapter_weights(run)[key]) for key, tensor in expected.items())


def test_resume_of_a_complete_run_or_another_recipe_is_refused(llama, data, tmp_path):
    first = recipe(llama, data, tmp_path / "run", "max_steps=2")
    train(first, quiet=True)
    with pytest.raises(ValueError, match="is complete"):
        train(first, resume=True)
    (tmp_path / "run" / "result.json").unlink()
    other = recipe(llama, data, tmp_path / "run", "max_steps=2", "lmam.rank=4")
    with pytest.raises(ValueError, match="the run to resume had parts="):
        train(other, resume=True)


def test_a_folder_that_holds_a_run_is_left_alone_unless_overwrite_is_said(llama, data, tmp_path):
    again = recipe(llama, data, tmp_path / "run", "max_steps=2")
    run = train(again, quiet=True).run
    (run / "notes.txt").write_text("mine")
    before = (run / "result.json").read_bytes()
    with pytest.raises(ValueError, match="already holds a run"):
        train(again)
    assert (run / "result.json").read_bytes() == before
    train(again, overwrite=True, quiet=True)
    assert (run / "notes.txt").read_text() == "mine"


class BreakWeights(TrainerCallback):
    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step == 4:
            next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))


def test_a_nan_stops_the_run_says_the_step_and_keeps_the_last_checkpoint(
    llama, data, tmp_path, monkeypatch
):
    with_callback(monkeypatch, BreakWeights())
    with pytest.raises(DivergedError, match=r"became nan at step 5; .*checkpoint-2") as caught:
        train(recipe(llama, data, tmp_path / "run", "max_steps=9", "save_steps=2"), quiet=True)
    assert "learning_rate" in str(caught.value)
    # checkpoint-4's own weights gave the NaN as far as anyone can tell, so the one before counts.
    kept = load_file(tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert not (tmp_path / "run" / "adapter").exists()


def test_from_starts_a_stack_from_a_saved_lora(llama, data, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(llama)
    lora = get_peft_model(base, LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
    lora.save_pretrained(tmp_path / "lora")
    saved = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    start = recipe(
        llama, data, tmp_path / "run", "max_steps=1", "learning_rate=1e-12",
        "lmam.map_learning_rate=1e-12", method="lmam", from_adapter=str(tmp_path / "lora"),
    )  # fmt: skip
    after = adapter_weights(train(start, quiet=True).run)
    assert any(".lmam." in key for key in after)
    for key, tensor in saved.items():
        torch.testing.assert_close(after[key], tensor, atol=1e-8, rtol=0)


def test_maps_have_their_own_learning_rate(llama, data, tmp_path):
    frozen = recipe(
        llama, data, tmp_path / "run", "max_steps=3", "learning_rate=0",
        "lmam.map_learning_rate=1e-2", "lmam.init=normal",
    )  # fmt: skip
    run = train(frozen, quiet=True).run
    other = recipe(
        llama, data, tmp_path / "other", "max_steps=3", "learning_rate=0",
        "lmam.map_learning_rate=1e-9", "lmam.init=normal",
    )  # fmt: skip
    moved, still = adapter_weights(run), adapter_weights(train(other, quiet=True).run)
    for key in moved:
        distance = (moved[key] - still[key]).abs().max()
        assert (distance > 1e-3) == (".lmam." in key)


@pytest.mark.parametrize("method", ["full", "lora+lmam", "fmam"])
def test_every_method_trains_evaluates_and_generates(llama, data, tmp_path, method):
    changes = ["lmam.length=16"] if method == "fmam" else []
    train(recipe(llama, data, tmp_path / "run", "max_steps=2", *changes, method=method), quiet=True)
    run = load_run(tmp_path / "run")
    metrics = evaluate(run, data)
    assert metrics["n"] == len(ROWS)
    assert 0 < metrics["loss"] < math.log(len(run.tokenizer)) + 0.5  # about that of guessing
    assert "exact_match" in metrics
    assert read_result(tmp_path / "run")["metrics"][data] == metrics
    assert len(generate(run, ["1 + 1 =", "2 + 2 ="])) == 2


def test_the_base_is_scored_with_the_adapter_switched_off(llama, data, tmp_path):
    train(recipe(llama, data, tmp_path / "run", "max_steps=6", "learning_rate=1e-2"), quiet=True)
    run = load_run(tmp_path / "run")
    ours, base = evaluate(run, data), evaluate(run, data, base=True)
    assert ours["loss"] < base["loss"]
    assert evaluate(run, data) == ours
    assert set(read_result(tmp_path / "run")["metrics"]) == {data, f"{data} (base)"}


def test_a_classifier_trains_on_labelled_texts(data, tmp_path):
    bert = str(bert_folder(tmp_path / "bert"))
    rows = [{"text": f"{i % 2} is here", "label": ["no", "yes"][i % 2]} for i in range(24)]
    texts = str(rows_file(tmp_path / "texts.jsonl", rows))
    settings = ("max_steps=6", "lmam.heads=2")
    train(recipe(bert, texts, tmp_path / "run", *settings, method="lorada_a"), quiet=True)
    run = load_run(tmp_path / "run")
    assert run.labels == ("no", "yes")
    scores = evaluate(run, texts)
    with torch.no_grad():
        batch = run.tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True)
        guesses = run.model(**batch).logits.argmax(-1).tolist()
    right = sum(run.labels[g] == row["label"] for g, row in zip(guesses, rows, strict=True))
    assert scores["accuracy"] == pytest.approx(100 * right / 24)
    with pytest.raises(ValueError, match="is a classifier"):
        generate(run, ["a"])
    other = rows_file(tmp_path / "other.jsonl", [{"text": "a", "label": "maybe"}])
    with pytest.raises(ValueError, match="'maybe'; training knew no, yes"):
        evaluate(run, str(other))


def test_a_head_that_is_not_there_cannot_stay_as_it_was_drawn(llama, data, tmp_path):
    with pytest.raises(ValueError, match="puts no head on a model"):
        train(recipe(llama, data, tmp_path / "run", "train_head=false"), quiet=True)


def test_an_encoder_cannot_be_asked_for_a_response(data, tmp_path):
    bert = str(bert_folder(tmp_path / "bert"))
    with pytest.raises(ValueError, match="cannot continue a prompt"):
        train(recipe(bert, data, tmp_path / "run", method="lmam"), quiet=True)


def test_max_length_never_exceeds_the_models_context(llama, data, tmp_path, caplog):
    long = recipe(llama, data, tmp_path / "run", "max_steps=1", "max_length=999")
    run = train(long, quiet=True).run
    assert load_run(run).recipe.max_length == 64
    (run / "result.json").unlink()
    assert train(long, resume=True, quiet=True).result["recipe"]["max_length"] == 999
    assert "max_length=999 is cut to the model's 64" in caplog.text
