"""IST and OwLore where they are used: ``lorada train``, resumed and in several processes."""

import shutil

import pytest
from folders import llama_folder, rows_file
from peft import LoraConfig
from safetensors.torch import load_file
from trained_runs import assert_same
from training.test_processes import BATCH, LLAMA, alone, assert_same_run, launch_all, words

from lorada import BottleneckConfig, LoradaConfig
from lorada.methods.build import Plan
from lorada.methods.callbacks.ist import ISTCallback
from lorada.methods.callbacks.owlore import OwLoreCallback
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

pytestmark = pytest.mark.fp64
LLAMA = {**LLAMA, "num_hidden_layers": 6}  # more than OwLore trains at a time


def ist_plan() -> Plan:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    config = LoradaConfig(parts=[lora, BottleneckConfig(rank=4)])
    return Plan(config, callbacks=(ISTCallback(every=2, update_frac=0.5),))


def owlore_plan() -> Plan:
    return Plan(None, callbacks=(OwLoreCallback(layers=1, every=2, threshold=2.0),), trainable=".")


@pytest.mark.more
@pytest.mark.parametrize("plan", [ist_plan, owlore_plan], ids=["ist", "owlore_full"])
def test_lorada_train_resumes_bit_for_bit_and_counts_all_that_trains(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("lorada.training.inputs.plan_method", lambda *_, **__: plan())
    model = str(llama_folder(tmp_path / "llama"))
    data = str(rows_file(tmp_path / "rows.jsonl"))
    settings = [
        "training.per_device_train_batch_size=4", "training.report_to=[]", "max_length=32",
        "max_steps=7", "save_steps=3",
    ]  # fmt: skip
    fixed = {"method": "lora" if plan is ist_plan else "full", "model": model, "data": data}

    def run(name, **options):
        recipe = load_recipe(None, settings, {**fixed, "output": str(tmp_path / name)})
        return train(recipe, quiet=True, **options)

    whole = run("whole")
    run("part")
    (tmp_path / "part" / "result.json").unlink()
    for kept in ("adapter", "model", "checkpoint-7"):
        shutil.rmtree(tmp_path / "part" / kept, ignore_errors=True)
    resumed = run("part", resume=True)
    assert resumed.result.resumed_from == "checkpoint-6"
    assert resumed.result.parameters == whole.result.parameters
    assert resumed.result.history == whole.result.history
    folder = "adapter/adapter_model" if plan is ist_plan else "model/model"
    expected, actual = (
        load_file(tmp_path / name / f"{folder}.safetensors") for name in ("whole", "part")
    )
    assert_same(actual, expected)
    if plan is ist_plan:  # all adapters, not only those of the last step
        assert whole.result.parameters.trainable == sum(v.numel() for v in expected.values())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ist", "owlore_full"])
def test_two_processes_train_as_one(method, place, tmp_path, works):
    settings = [
        "max_steps=12", "save_steps=12", "logging_steps=3", "training.adam_epsilon=1e-3",
        "lora.lora_dropout=0" if method == "ist" else "learning_rate=1e-5",
    ]  # fmt: skip
    run = ("llama", "rows", method, tmp_path / "two", *settings)
    codes, done = launch_all(tmp_path, [words(place, *run, *BATCH)])
    assert codes == [[0], [0]], done.stderr
    assert_same_run(tmp_path / "two", alone(place, works, *run[:3], tmp_path / "one", *settings))
