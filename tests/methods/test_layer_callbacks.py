"""IST and OwLore where they are used: ``lorada train``, other families, several processes."""

import json
import os
import shutil
import sys

import layer_callbacks_worker
import pytest
from conftest import assert_close
from folders import llama_folder, rows_file
from peft import LoraConfig
from programs import printed
from safetensors.torch import load_file
from trained import assert_same

from lorada import BottleneckConfig, LoradaConfig
from lorada.methods.build import Plan
from lorada.methods.callbacks.ist import ISTCallback
from lorada.methods.callbacks.owlore import OwLoreCallback
from lorada.training.load_recipe import load_recipe
from lorada.training.train import train

pytestmark = pytest.mark.fp64


def ist_plan() -> Plan:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    config = LoradaConfig(parts=[lora, BottleneckConfig(rank=4)])
    return Plan(config, callbacks=(ISTCallback(every=2, update_frac=0.5),))


def owlore_plan() -> Plan:
    return Plan(None, callbacks=(OwLoreCallback(layers=1, every=2, threshold=2.0),), trainable=".")


@pytest.mark.parametrize("plan", [ist_plan, owlore_plan], ids=["ist", "owlore_full"])
def test_lorada_train_resumes_bit_for_bit_and_counts_all_that_trains(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("lorada.training.inputs.build_method", lambda *_, **__: plan())
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
    assert resumed.result["resumed_from"] == "checkpoint-6"
    assert resumed.result["parameters"] == whole.result["parameters"]
    assert resumed.result["history"] == whole.result["history"]
    folder = "adapter/adapter_model" if plan is ist_plan else "model/model"
    expected, actual = (
        load_file(tmp_path / name / f"{folder}.safetensors") for name in ("whole", "part")
    )
    assert_same(actual, expected)
    if plan is ist_plan:  # all adapters, not only those of the last step
        assert whole.result["parameters"]["trainable"] == sum(v.numel() for v in expected.values())


@pytest.mark.slow
@pytest.mark.parametrize("procedure", ["ist", "owlore"])
def test_two_processes_train_as_one(procedure, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    layer_callbacks_worker.main(procedure, str(folders[0]), 1)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    command += ["--multi_gpu", "--main_process_port", "0", layer_callbacks_worker.__file__]
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    printed(*command, procedure, folders[1], 2, **env)
    expected, actual = (load_file(folder / "weights.safetensors") for folder in folders)
    for name, tensor in expected.items():
        assert_close(actual[name], tensor)
    scores = [json.loads((folders[1] / f"scores{rank}.json").read_text()) for rank in (0, 1)]
    assert scores[0] == scores[1]  # to the last bit, so that both draw the same layers
