"""What is saved of a run on a packaged model names a model that others can load."""

import json
import warnings

import pytest
from folders import llama_folder, rows_file
from peft import PeftModel
from trained_runs import QUICK, run_recipe
from transformers import AutoModelForCausalLM

from lorada.inference.export import export
from lorada.inference.load import load_run
from lorada.support import models
from lorada.training.models import loading
from lorada.training.models.adapters import adapter_config
from lorada.training.models.loading import base_type_of
from lorada.training.train import train

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of converted weights, with a tiny model in the place of the packaged one."""
    folder = tmp_path / "cache"
    llama_folder(folder / "smollm2-135m")
    rows_file(tmp_path / "rows.jsonl")
    monkeypatch.setenv("LORADA_CACHE", str(folder))
    for module in (models, loading):
        monkeypatch.setattr(module, "package_folder", lambda name: folder / name)
    return folder


@pytest.mark.parametrize("method", ["lora", "lorada_la"])
def test_no_file_to_share_names_a_folder_of_this_machine(method, cache, tmp_path):
    options = {"model": "smollm2-135m", "data": str(tmp_path / "rows.jsonl"), "method": method}
    own = [*QUICK, "max_steps=1", "save_steps=1"]
    recipe = run_recipe(own, tmp_path, tmp_path / "run").model_copy(update=options)
    run = train(recipe, quiet=True).run
    export(run, tmp_path / "exported")
    shared = [*(run / "adapter").iterdir(), *(tmp_path / "exported").iterdir()]
    for path in [*shared, run / "checkpoint-1" / "adapter_config.json"]:
        if path.suffix in (".json", ".md"):
            assert str(tmp_path) not in path.read_text(), path
    saved = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == HUB
    for folder in (run / "adapter", tmp_path / "exported"):
        card = (folder / "README.md").read_text()
        assert f"base_model: {HUB}" in card
        assert "in 4 bits. They were\nunpacked" in card
        assert max(map(len, card.splitlines())) <= 100
    # Here it still loads without asking the hub, and onto a model of its own type only.
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Could not find a config file")
        load_run(run)
    base = AutoModelForCausalLM.from_pretrained(cache / "smollm2-135m")
    PeftModel.from_pretrained(base, run / "adapter")
    assert base_type_of(adapter_config(run / "adapter")) == "llama"
