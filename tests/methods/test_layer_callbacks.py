"""IST and OwLore where they are used: ``lorada train``, other families, several processes."""

import json
import os
import subprocess
import sys

import layer_callbacks_worker
import pytest
import torch
from architectures import ARCHITECTURES
from conftest import TINY, assert_close
from folders import llama_folder, rows_file
from layer_runs import Watch, layer_of, trainer_for
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from lorada import BottleneckConfig, LoradaConfig
from lorada.methods.build import Plan
from lorada.methods.callbacks.ist import ISTCallback, share_of
from lorada.methods.callbacks.layers import LayerSwitch, layers_of
from lorada.methods.callbacks.owlore import OwLoreCallback
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train

pytestmark = pytest.mark.fp64


def ist_plan() -> Plan:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    config = LoradaConfig(parts=[lora, BottleneckConfig(rank=4)])
    return Plan(config, callbacks=(ISTCallback(every=2, update_frac=0.5),))


def owlore_plan() -> Plan:
    return Plan(None, callbacks=(OwLoreCallback(layers=1, every=2, threshold=2.0),), trainable=".")


@pytest.mark.parametrize("plan", [ist_plan, owlore_plan], ids=["ist", "owlore_full"])
def test_lorada_train_resumes_bit_for_bit_and_counts_all_that_trains(plan, tmp_path, monkeypatch):
    monkeypatch.setattr("lorada.runs.prepare.build_method", lambda *_, **__: plan())
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
        subprocess.run(["rm", "-rf", str(tmp_path / "part" / kept)], check=True)
    resumed = run("part", resume=True)
    assert resumed.result["resumed_from"] == "checkpoint-6"
    assert resumed.result["parameters"] == whole.result["parameters"]
    assert resumed.result["history"] == whole.result["history"]
    folder = "adapter/adapter_model" if plan is ist_plan else "model/model"
    expected, actual = (
        load_file(tmp_path / name / f"{folder}.safetensors") for name in ("whole", "part")
    )
    assert all(torch.equal(actual[key], value) for key, value in expected.items())
    if plan is ist_plan:  # all adapters, not only those of the last step
        assert whole.result["parameters"]["trainable"] == sum(v.numel() for v in expected.values())


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_encoders_are_trained_by_layers(family, tmp_path):
    model = TINY[family](num_hidden_layers=4)
    lora = LoraConfig(r=2, target_modules=["query", "value"])
    adapted = get_peft_model(model, LoradaConfig(parts=[lora, BottleneckConfig(rank=2)]))
    watch = Watch()
    trainer = trainer_for(adapted, tmp_path, ISTCallback(every=2), steps=4)
    trainer.add_callback(watch)
    trainer.train()
    assert len(watch.gradients) == 4
    assert all(len({layer_of(name) for name in names}) == 1 for names in watch.gradients)


def test_both_stacks_of_an_encoder_decoder_are_layers():
    names = list(layers_of(ARCHITECTURES["bart"]()))
    assert names == [
        f"model.{stack}.layers.{i}" for stack in ("encoder", "decoder") for i in range(2)
    ]


def trained(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_llama_7b_trains_a_quarter_of_its_lora_or_five_of_its_layers_at_a_time():
    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig())
    total, width, ffn, vocab = 6_738_415_616, 4096, 11008, 32000
    assert trained(base) == total
    switch = LayerSwitch(base)
    switch.only([0, 3, 7, 30, 31])
    layer = 4 * width**2 + 3 * width * ffn + 2 * width
    outside = 2 * vocab * width + width
    assert trained(base) == 5 * layer + outside
    assert (5 * layer, round(100 * 5 * layer / total, 1)) == (1_011_916_800, 15.0)
    assert round(100 * outside / total, 1) == 3.9
    switch.all()
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    with torch.device("meta"):
        model = get_peft_model(base, LoraConfig(r=32, target_modules=targets))
    whole = 32 * 32 * (3 * 2 * width + 2 * (width + ffn))
    assert trained(model) == whole == 56_098_816
    LayerSwitch(model).only(range(share_of(0.25, 32)))
    assert trained(model) == whole / 4
    assert round(100 * trained(model) / total, 2) == 0.21


@pytest.mark.slow
@pytest.mark.parametrize("procedure", ["ist", "owlore"])
def test_two_processes_train_as_one(procedure, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    layer_callbacks_worker.main(procedure, str(folders[0]), 1)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    command += ["--multi_gpu", "--main_process_port", "0", layer_callbacks_worker.__file__]
    done = subprocess.run(
        [*command, procedure, str(folders[1]), "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    expected, actual = (load_file(folder / "weights.safetensors") for folder in folders)
    for name, tensor in expected.items():
        assert_close(actual[name], tensor)
    scores = [json.loads((folders[1] / f"scores{rank}.json").read_text()) for rank in (0, 1)]
    assert scores[0] == scores[1]  # to the last bit, so that both draw the same layers
