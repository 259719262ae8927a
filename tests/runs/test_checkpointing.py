"""``activation_checkpointing``: the same losses and gradients, and when ``auto`` takes it."""

import json

import psutil
import pytest
import torch
from conftest import assert_close
from folders import ROWS, llama_folder, mistral_folder, rows_file
from safetensors.torch import load_file
from test_train import with_callback
from transformers import TrainerCallback

from lorada.experiments.compare.measure import measure_steps
from lorada.runs.prepare import prepare_training
from lorada.runs.recipe import load_recipe
from lorada.runs.training import checkpointing
from lorada.runs.training.checkpointing import choose, decided, free_memory
from lorada.runs.training.train import train
from lorada.runs.training.training_memory import training_memory

SETTINGS = ["per_device_train_batch_size=4", "max_length=32", "report_to=[]", "logging_steps=1"]
# Without dropout, whose random numbers are others in fp64.
PLAIN = ["lora.lora_dropout=0", "bottleneck.dropout=0", "max_steps=3"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    return str(llama_folder(folder, attention_dropout=0.0, num_hidden_layers=4))


@pytest.fixture
def asked(llama, tmp_path):
    def make(setting, *overrides, rows=ROWS, method="lorada_la"):
        data = rows_file(tmp_path / "rows.jsonl", rows)
        words = [f"activation_checkpointing={setting}", *SETTINGS, *overrides]
        options = {"method": method, "model": llama, "data": str(data)}
        return load_recipe(None, words, {**options, "output": str(tmp_path / f"run-{setting}")})

    return make


def with_free(monkeypatch, size):
    monkeypatch.setattr(checkpointing, "free_memory", lambda training: int(size))


def setting_of(model):
    """The ``activation_checkpointing`` with which a model is set up."""
    if model.is_gradient_checkpointing:
        return "full"
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    owners = {type(getattr(hook, "__self__", None)).__module__ for hook in hooks}
    return "selective" if "lorada.runs.training.selective" in owners else "off"


class KeepGradients(TrainerCallback):
    """Keeps the gradients of each step, and which activations the model computed again."""

    def __init__(self):
        self.steps, self.recomputes = [], set()

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.steps.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
        self.recomputes.add(setting_of(model))
        assert not (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")


def trained(recipe):
    kept = KeepGradients()
    return train(recipe, quiet=True, callbacks=[kept]).result, kept


@pytest.mark.fp64
@pytest.mark.parametrize("setting", ["selective", "full"])
def test_losses_and_gradients_are_those_of_off(asked, setting):
    plain, expected = trained(asked("off", *PLAIN, "dtype=float64"))
    again, found = trained(asked(setting, *PLAIN, "dtype=float64"))
    assert (expected.recomputes, found.recomputes) == ({"off"}, {setting})
    losses = [torch.tensor([e["loss"] for e in r["history"]]) for r in (plain, again)]
    assert_close(losses[1], losses[0])
    for step, other in zip(found.steps, expected.steps, strict=True):
        assert step.keys() == other.keys()
        for name, gradient in other.items():
            assert_close(step[name], gradient)


@pytest.mark.fp64
def test_candidates_behind_a_shared_prompt_are_learned_the_same(asked):
    rows = [
        {"prompt": f"a b {letter}", "candidates": [" c", " d e"], "answer": 1} for letter in "abcd"
    ]
    off, selective = (
        trained(asked(setting, *PLAIN, "dtype=float64", rows=rows))[1]
        for setting in ("off", "selective")
    )
    assert selective.recomputes == {"selective"}
    for step, other in zip(selective.steps, off.steps, strict=True):
        assert step.keys() == other.keys()
        for name, gradient in other.items():
            assert torch.equal(step[name], gradient)


@pytest.mark.fp64
@pytest.mark.parametrize("folder", [llama_folder, mistral_folder])
def test_candidates_are_learned_the_same_with_dropout_where_layers_run_again(
    folder, asked, tmp_path
):
    """The first run of a layer reads a cache that is full when the layer runs again."""
    candidates = [[" c", " d e f"], [" a", " bcdef gh"]]
    rows = [
        {"prompt": f"a b {letter} " * (1 + n % 2), "candidates": candidates[n % 2], "answer": n % 2}
        for n, letter in enumerate("abcd")
    ]
    drawn = ["lora.lora_dropout=0.2", "lmam.init_weights=false", "lmam.length=12", "max_steps=3"]
    adapters = {}
    for setting in ("off", "full"):
        recipe = asked(setting, *drawn, "dtype=float64", rows=rows)
        recipe = recipe.model_copy(update={"model": str(folder(tmp_path / "model"))})
        _, kept = trained(recipe)
        assert kept.recomputes == {setting}
        adapters[setting] = load_file(tmp_path / f"run-{setting}/adapter/adapter_model.safetensors")
    assert adapters["off"].keys() == adapters["full"].keys()
    for name, weights in adapters["off"].items():
        assert_close(adapters["full"][name], weights)


@pytest.fixture
def computed(monkeypatch):
    """Steps whose memory was computed, by setting, length and sequences; none is computed twice."""
    found = {}

    def once(recipe, sequences=None):
        step = recipe.activation_checkpointing, recipe.max_length, sequences
        found[step] = found.get(step) or training_memory(recipe, sequences)
        return found[step]

    monkeypatch.setattr(checkpointing, "training_memory", once)
    return found


def test_auto_computes_again_where_a_step_would_not_fit(asked, computed, monkeypatch, caplog):
    recipe = asked("auto", *PLAIN)
    off, selective, full = choose(prepare_training(recipe)).sizes.values()
    assert [setting for setting, *_ in computed] == ["off", "selective", "full"]
    assert full < selective < 0.9 * off
    for size, larger, smaller in ((off, "off", "selective"), (selective, "selective", "full")):
        for more, chosen in ((8, larger), (-8, smaller)):
            with_free(monkeypatch, size / checkpointing.ROOM + more)
            assert decided(prepare_training(recipe)).checkpointing == chosen
    free = (selective + full) / 2 / checkpointing.ROOM
    with_free(monkeypatch, free)
    caplog.clear()
    result, kept = trained(recipe)
    assert kept.recomputes == {"full"}
    assert result["recipe"]["activation_checkpointing"] == "auto"  # what was asked
    (line,) = (m for m in caplog.messages if "activation" in m)
    numbers = [f"{size / 2**30:.2f} GiB" for size in (off, selective, full, free)]
    assert line == (
        f"activation_checkpointing=auto takes full: a step needs {numbers[0]} with off, "
        f"{numbers[1]} with selective, {numbers[2]} with full, "
        f"and may take 60% of {numbers[3]} free"
    )


@pytest.mark.slow
def test_auto_computes_nothing_again_where_there_is_room(asked, monkeypatch, caplog):
    with_free(monkeypatch, 2**40)
    _, kept = trained(asked("auto", *PLAIN))
    assert kept.recomputes == {"off"}
    assert "activation_checkpointing=auto takes off: a step needs" in caplog.text


@pytest.mark.slow
def test_it_is_said_where_even_full_may_not_fit(asked, monkeypatch):
    with_free(monkeypatch, 1000)
    line = choose(prepare_training(asked("auto"))).line
    assert "auto takes full" in line
    assert line.endswith("; that may not be enough: take smaller batches or a smaller max_length")


def test_memory_that_cannot_be_computed_is_said_and_leaves_it_off(asked, monkeypatch, caplog):
    with_free(monkeypatch, 0)
    recipe = asked("auto", "r=1", method="shira")
    assert decided(prepare_training(recipe)).checkpointing == "off"
    assert caplog.messages[-1] == (
        "activation_checkpointing=auto takes off: the memory of a step cannot be computed "
        "(SHiRA's sparse weights have no form on fake tensors)"
    )


def test_a_batch_of_candidates_has_a_sequence_for_each(asked, computed):
    rows = [{"prompt": "a", "candidates": [" b", " c", " d"], "answer": 0}] * 4
    three = choose(prepare_training(asked("auto", rows=rows))).sizes["off"]
    one = choose(prepare_training(asked("auto"))).sizes["off"]
    assert {sequences for _, _, sequences in computed} == {12, None}
    assert three > one


@pytest.mark.slow
def test_rows_are_no_longer_than_the_model_can_read(asked, computed):
    choose(prepare_training(asked("auto", "max_length=999")))
    assert {length for _, length, _ in computed} == {64}


@pytest.mark.slow
def test_measured_steps_decide_too(asked, monkeypatch):
    kept = KeepGradients()
    with_callback(monkeypatch, kept)
    with_free(monkeypatch, 0)
    measure_steps(asked("auto", *PLAIN))
    assert kept.recomputes == {"full"}


@pytest.mark.parametrize("setting", ["selective", "full", "auto"])
@pytest.mark.parametrize(
    "other",
    ["gradient_checkpointing=true", "gradient_checkpointing_kwargs={use_reentrant: true}"],
)
def test_two_settings_for_one_thing_are_refused(asked, setting, other):
    recipe = asked(setting, f"training.{other}")
    with pytest.raises(ValueError, match="exclude each other: leave one out") as caught:
        train(recipe, quiet=True)
    assert str(caught.value).startswith(f"activation_checkpointing={setting} and training.")
    train(asked("off", f"training.{other}", "max_steps=1"), quiet=True)


def test_free_memory_is_the_ram_that_is_available_to_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(checkpointing, "CONTAINER", tmp_path)
    ram = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: ram)
    assert free_memory({}) == 1000
    (tmp_path / "memory.max").write_text("700\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert free_memory({}) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory({}) == 1000
    for name, value in {"LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert free_memory({}) == 500


def test_free_memory_is_that_of_the_gpu_if_it_trains_on_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5, 9))
    assert free_memory({}) == 5
    assert free_memory({"use_cpu": True}) > 1000


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(
    call, llama, tmp_path, monkeypatch
):
    with_free(monkeypatch, 2**40)
    data, run = rows_file(tmp_path / "rows.jsonl"), tmp_path / "run"
    words = ["train", "--method", "lora", "--model", llama, "--data", data, "--output", run]
    words += ["--dry-run", "activation_checkpointing=auto", *SETTINGS]
    code, out, err = call(*words)
    assert code == 0, err
    assert "activation_checkpointing=auto takes off: a step needs 0.00 GiB with off" in out
    code, out, err = call(*words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["activation_checkpointing"] == "off"
    assert found["step_bytes"]["full"] < found["step_bytes"]["off"]
    assert (found["rows"], found["free_bytes"]) == (len(ROWS), 2**40)
    assert not run.exists()
    code, _, err = call(*words, "training.gradient_checkpointing=true")
    assert (code, "exclude each other" in err) == (2, True)
