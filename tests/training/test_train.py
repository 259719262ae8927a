"""Training runs on tiny local models: what is written, resumed, stopped and refused."""

import json
import os
import signal
import time
from functools import partial

import pytest
import torch
from folders import ROWS, adapter_weights, refused, rows_file
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from trained_runs import QUICK, PressCtrlC, assert_same, before_its_end, run_recipe
from transformers import AutoModelForCausalLM, TrainerCallback

from lorada.inference.evaluate import evaluate
from lorada.inference.generate import generate
from lorada.inference.load import load_run
from lorada.runs.folder import locked
from lorada.runs.result import read_result
from lorada.training.train import train

recipe = partial(run_recipe, [*QUICK, "logging_steps=2"], rows="rows", method="lorada_la")
CHOICES = [{"prompt": row["prompt"], "candidates": [" 0", " 1"], "answer": 0} for row in ROWS]
ROW_FILES = {"choices": CHOICES, "single": [{"text": "a", "label": "x"}] * 4}


def test_a_run_leaves_an_adapter_that_peft_loads_a_card_and_a_result(place, tmp_path):
    trained = train(recipe(place, tmp_path / "run", "max_steps=6"), quiet=True)
    run = trained.run
    assert {p.name for p in (run / "adapter").iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "README.md",
    }  # fmt: skip
    assert "import lorada" in (run / "adapter" / "README.md").read_text()
    result = json.loads((run / "result.json").read_text())
    expected = {
        "recipe", "method", "model", "task", "seed", "data", "versions", "hardware", "parameters",
        "steps", "wall_time_s", "peak_memory_bytes", "relative_norm", "metrics", "history",
        "seconds_per_step",
    }  # fmt: skip
    assert expected <= result.keys()
    assert result["steps"] == 6
    assert result["relative_norm"] > 0
    assert [entry["step"] for entry in result["history"]] == [2, 4, 6]
    count = sum(tensor.numel() for tensor in adapter_weights(run).values())
    assert result["parameters"]["trainable"] == count
    base, ids = AutoModelForCausalLM.from_pretrained(place / "llama"), torch.arange(3, 12)[None]
    before, expected = base(ids).logits, load_run(run).model(ids).logits
    loaded = PeftModel.from_pretrained(base, run / "adapter")(ids).logits
    assert torch.equal(loaded, expected)
    assert (loaded - before).abs().max() > 1e-4


@pytest.mark.more
@pytest.mark.parametrize(
    ("order", "rows"), [("random", "rows"), ("group_by_length", "rows"), ("random", "choices")]
)
def test_ctrl_c_saves_and_resume_continues_bit_for_bit(place, tmp_path, order, rows):
    handler = signal.getsignal(signal.SIGINT)
    settings = ("max_steps=9", f"training.train_sampling_strategy={order}")
    whole = train(recipe(place, tmp_path / "whole", *settings, rows=rows), quiet=True)
    part = recipe(place, tmp_path / "part", *settings, rows=rows)
    stopped = train(part, quiet=True, callbacks=[PressCtrlC(4)])
    assert stopped.interrupted
    assert (stopped.run / "checkpoint-5").is_dir()
    assert not (stopped.run / "result.json").exists()
    resumed = train(part, resume=True, quiet=True)
    assert_same(adapter_weights(resumed.run), adapter_weights(whole.run))
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.more
def test_the_time_of_a_step_is_the_median_so_that_a_slow_save_does_not_count(place, tmp_path):
    class SlowSave(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            time.sleep(1.0)

    found = {}
    for steps in (1, 2, 6):
        asked = recipe(place, tmp_path / str(steps), f"max_steps={steps}", "save_steps=3")
        found[steps] = train(asked, quiet=True, callbacks=[SlowSave()]).result.seconds_per_step
    assert found[1] is None
    assert 0 < found[2] < 1
    assert 0 < found[6] < 1


def test_ctrl_c_after_the_last_step_loses_no_training(place, tmp_path):
    class AtTheEnd(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            signal.raise_signal(signal.SIGINT)

    asked = recipe(place, tmp_path / "run", "max_steps=2", "save_strategy=no")
    done = train(asked, quiet=True, callbacks=[AtTheEnd()])
    assert not done.interrupted
    assert (done.run / "result.json").is_file()


def test_resume_after_the_last_checkpoint_trains_no_further(place, tmp_path):
    last = recipe(place, tmp_path / "run", "max_steps=4", "save_steps=4")
    run = train(last, quiet=True).run
    expected = adapter_weights(run)
    (run / "result.json").unlink()
    resumed = train(last, resume=True, quiet=True)
    assert resumed.result.steps == 4
    assert resumed.result.relative_norm > 0
    assert resumed.result.seconds_per_step is None
    assert resumed.result.resumed_from == "checkpoint-4"
    assert_same(adapter_weights(run), expected)


def test_a_folder_that_holds_a_run_is_left_alone_unless_overwrite_is_said(place, tmp_path):
    again = recipe(place, tmp_path / "run", "max_steps=2")
    with locked(tmp_path / "run"):
        refused(f"run is being trained by process {os.getpid()}: ", lambda: train(again))
    assert not (tmp_path / "run").exists()
    run = train(again, quiet=True).run
    (run / "notes.txt").write_text("mine")
    before = (run / "result.json").read_bytes()
    refused("already holds a run", lambda: train(again))
    assert (run / "result.json").read_bytes() == before
    train(again, overwrite=True, quiet=True)
    assert (run / "notes.txt").read_text() == "mine"


def test_from_starts_a_stack_from_a_saved_lora(place, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(place / "llama")
    lora = get_peft_model(base, LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
    lora.save_pretrained(tmp_path / "lora")
    saved = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    start = recipe(
        place, tmp_path / "run", "max_steps=1", "learning_rate=1e-12",
        "lmam.map_learning_rate=1e-12", method="lmam", from_adapter=str(tmp_path / "lora"),
    )  # fmt: skip
    after = adapter_weights(train(start, quiet=True).run)
    assert any(".lmam." in key for key in after)
    for key, tensor in saved.items():
        torch.testing.assert_close(after[key], tensor, atol=1e-8, rtol=0)


def ranks(run) -> dict[str, int]:
    weights = adapter_weights(run)
    return {key: len(tensor) for key, tensor in weights.items() if key.endswith("lora_E")}


@pytest.mark.more
@pytest.mark.parametrize("method", ["adalora", "lmam"])
def test_a_run_from_a_pruned_adalora_trains_the_ranks_that_are_left(place, tmp_path, method):
    sizes = ("max_steps=4", "learning_rate=1e-2")
    few = ("init_r=3", "target_r=1")
    first = train(recipe(place, tmp_path / "first", *sizes, *few, method="adalora"), quiet=True).run
    left = ranks(first)
    assert 0 in left.values(), "a matrix without ranks has its own errors"
    assert len({*left.values()}) > 1

    source = str(first / "adapter")
    asked = partial(recipe, place, method=method, from_adapter=source)
    still = train(asked(tmp_path / "still", "max_steps=1", "learning_rate=0"), quiet=True)
    ids = torch.arange(3, 23).reshape(2, 10)
    with torch.no_grad():
        expected = load_run(first).model(input_ids=ids).logits
        assert torch.equal(load_run(still.run).model(input_ids=ids).logits, expected)

    run = train(asked(tmp_path / "run", *sizes, "save_steps=2"), quiet=True).run
    assert ranks(run) == left
    before, after = adapter_weights(first), adapter_weights(run)
    assert any(not torch.equal(after[key], before[key]) for key in before if "lora_E" in key)
    assert load_run(run).model(input_ids=ids).logits.isfinite().all()
    cut = before_its_end(run, tmp_path / "cut")
    resumed = train(asked(cut, *sizes, "save_steps=2"), resume=True, quiet=True)
    assert resumed.result.resumed_from == "checkpoint-2"
    assert_same(adapter_weights(cut), after)


class Regulariser(TrainerCallback):
    """What AdaLoRA's matrices are off from orthonormal at the start of a training."""

    def on_train_begin(self, args, state, control, **kwargs):
        found = [p.detach() for n, p in kwargs["model"].named_parameters() if p.requires_grad
                 and ("lora_A" in n or "lora_B" in n)]  # fmt: skip
        grams = [p @ p.T if p.shape[0] < p.shape[1] else p.T @ p for p in found]
        self.mean = sum(torch.norm(gram - torch.eye(len(gram))) for gram in grams) / len(grams)


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        ("rows", ()),
        ("choices", ()),
        ("rows", ("label_smoothing_factor=0.1",)),
        ("turns", ("packing=true",)),
    ],
    ids=["prompts", "choices", "smoothed labels", "packed conversations"],
)
def test_every_loss_of_a_training_has_adalora_s_regulariser_once(place, tmp_path, rows, settings):
    losses, seen = [], Regulariser()
    for weight in (0, 2):
        sizes = ("max_steps=2", "logging_steps=1", f"orth_reg_weight={weight}", *settings)
        asked = recipe(place, tmp_path / str(weight), *sizes, rows=rows, method="adalora")
        losses.append(train(asked, quiet=True, callbacks=[seen]).result.history[0]["loss"])
    assert losses[1] - losses[0] == pytest.approx(2 * float(seen.mean), rel=1e-4)


def test_maps_have_their_own_learning_rate(place, tmp_path):
    settings, found = ("max_steps=3", "learning_rate=0", "lmam.init=normal"), []
    for rate in ("1e-2", "1e-9"):
        asked = recipe(place, tmp_path / rate, *settings, f"lmam.map_learning_rate={rate}")
        found.append(adapter_weights(train(asked, quiet=True).run))
    moved, still = found
    for key in moved:
        distance = (moved[key] - still[key]).abs().max()
        assert (distance > 1e-3) == (".lmam." in key)


@pytest.mark.more
def test_the_rate_of_maps_may_be_a_multiple_of_the_others(place, tmp_path):
    found = []
    for rate in ("0.5x", "5e-3", "0.4x", None):  # the third is the default
        own = [] if rate is None else [f"lmam.map_learning_rate={rate}"]
        asked = recipe(place, tmp_path / str(rate), "max_steps=2", "learning_rate=1e-2", *own)
        found.append(adapter_weights(train(asked, quiet=True).run))
    assert_same(found[0], found[1])
    assert_same(found[2], found[3])
    assert any(not torch.equal(found[0][key], found[2][key]) for key in found[0])


def test_a_classifier_trains_on_labelled_texts(place, tmp_path):
    rows = [{"text": f"{i % 2} is here", "label": ["no", "yes"][i % 2]} for i in range(24)]
    texts = str(rows_file(tmp_path / "texts.jsonl", rows))
    options = {"model": "bert", "data": texts, "method": "lorada_a"}
    train(recipe(place, tmp_path / "run", "max_steps=6", "lmam.heads=2", **options), quiet=True)
    run = load_run(tmp_path / "run")
    assert run.labels == ("no", "yes")
    assert evaluate(run, texts)["n"] == len(rows)
    refused("is a classifier", lambda: generate(run, ["a"]))
    other = rows_file(tmp_path / "other.jsonl", [{"text": "a", "label": "maybe"}])
    refused("'maybe'; training knew no, yes", lambda: evaluate(run, str(other)))


SMOOTH = "label_smoothing_factor=0.1"
NO_LABELS = f"training.{SMOOTH} is for classes and texts"
# Model, rows, settings, and what is said.
REFUSED = {
    "no epoch": ("llama", "rows", "num_train_epochs=0", "num_train_epochs=0 must be above 0"),
    "no step": ("llama", "rows", "max_steps=-3", "max_steps=-3 must be above 0"),
    "no batch": (
        "llama", "rows", "dataloader_drop_last=true per_device_train_batch_size=64",
        "leaves no batch of 36 rows",
    ),
    "a head that is not there": ("llama", "rows", "train_head=false", "puts no head on a model"),
    "a response of an encoder": (
        "bert", "rows", "", "prompt rows, which are not for an encoder: take rows with text and"
    ),
    "a single label": ("bert", "single", "", "only the label 'x'"),
    "held-out rows of another form": (
        "llama", "rows", "eval_data={}/single.jsonl eval_strategy=steps",
        "has label rows; this run has learned prompt rows",
    ),
    "smoothed choices": ("llama", "choices", SMOOTH, NO_LABELS),
    "smoothed scores": ("bert", "scores", SMOOTH, NO_LABELS),
}  # fmt: skip


@pytest.mark.first
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(place, tmp_path, case):
    model, rows, pairs, message = REFUSED[case]
    pairs = pairs.format(place).split()
    asked = recipe(place, tmp_path / "run", *pairs, model=model, rows=rows, method="lora")
    refused(message, lambda: train(asked, quiet=True))
    assert not (tmp_path / "run").exists()


def test_max_length_never_exceeds_the_models_context(place, tmp_path, caplog):
    long = recipe(place, tmp_path / "run", "max_steps=1", "max_length=999")
    run = train(long, quiet=True).run
    assert load_run(run).recipe.max_length == 64
    (run / "result.json").unlink()
    assert train(long, resume=True, quiet=True).result.recipe.max_length == 999
    assert "max_length=999 is cut to the model's 64" in caplog.text


SUM = "vblora+unilora+tinylora+lora+lmam"


@pytest.mark.parametrize("method", ["ia3", "frod", SUM])
def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(place, tmp_path, method):
    settings = ("max_steps=6", "save_steps=3", "learning_rate=1e-2")
    run = train(recipe(place, tmp_path / "run", *settings, method=method), quiet=True).run
    # A sum says it of each of its methods: here of those that are PEFT's own.
    named = [f"{name}: " for name in SUM.split("+")[:3]] if method == SUM else [""]
    sources = "; " + read_result(run).settings_from
    assert all(f"; {name}not from the paper" in sources for name in named)
    cut = before_its_end(run, tmp_path / "cut")
    resumed = train(recipe(place, cut, *settings, method=method), resume=True, quiet=True)
    assert resumed.result.resumed_from == "checkpoint-3"
    assert_same(adapter_weights(cut), adapter_weights(run))
