"""Adapters from a newer version: an error in one line, or a warning where nothing is new."""

import json
import shutil
import warnings

import pytest
import torch
from conftest import TINY
from folders import refused
from peft import PeftConfig, PeftModel
from stacks import batch, bottleneck, lmam, logits, lora, moved

from lorada import LoradaConfig
from lorada.support.version import __version__
from lorada.training.models.adapters import load_adapted

NEWER = "97.1.0"
CONFIGS = {
    "LmamConfig": lmam,
    "BottleneckConfig": bottleneck,
    "LoradaConfig": lambda: LoradaConfig(parts=[lora("llama"), lmam(), bottleneck()]),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One adapter of each config, and the logits it gives."""
    adapters = {}
    for name, make in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        model = moved(TINY["llama"](), make())
        model.save_pretrained(folder)
        adapters[name] = (folder, model)
    return adapters


def edited(saved, name, tmp_path, version=NEWER, part=None, **fields):
    """A copy of a saved adapter; its config or that of a part is of a version and has fields."""
    shutil.copytree(saved[name][0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter_config.json"
    data = json.loads(path.read_text())
    (data if part is None else data["parts"][part]).update(lorada_version=version, **fields)
    path.write_text(json.dumps(data))
    return tmp_path


WAYS = {
    "PeftModel": lambda folder: PeftModel.from_pretrained(TINY["llama"](), folder),
    "PeftConfig": PeftConfig.from_pretrained,
    "lorada": lambda folder: load_adapted(TINY["llama"](), folder),
}
# Saved adapter, what its config says, and the error.
UNKNOWN = {
    "map": ("LmamConfig", {"twist": 3}, "LmamConfig .*twist=3"),
    "stack": ("LoradaConfig", {"order": [1]}, "LoradaConfig .*order"),
    "map in a stack": ("LoradaConfig", {"part": 1, "twist": 3}, "LmamConfig .*twist=3"),
    "value": ("LmamConfig", {"align": "middle"}, "align='middle' is not one of"),
    "value in a stack": (
        "LoradaConfig",
        {"part": 2, "placement": "attn"},
        "placement='attn' is not one of",
    ),
    "kind of part": (
        "LoradaConfig",
        {"parts": [{"peft_type": "WAVES"}]},
        "peft_type='WAVES' of a part is unknown",
    ),
}


@pytest.mark.filterwarnings("ignore:.*was saved by lorada")  # which the error says too
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", UNKNOWN)
def test_what_a_newer_version_added_is_refused_in_one_line(case, way, saved, tmp_path):
    name, fields, message = UNKNOWN[case]
    folder = edited(saved, name, tmp_path, **fields)
    ends = rf"saved by lorada {NEWER}, this is {__version__}: install a newer lorada"
    refused(f"{message}.*{ends}", lambda: WAYS[way](folder))


@pytest.mark.parametrize("name", CONFIGS)
def test_newer_adapter_without_anything_new_loads_with_a_warning(name, saved, tmp_path):
    folder = edited(saved, name, tmp_path)
    with pytest.warns(UserWarning, match=f"saved by lorada {NEWER}, this is {__version__}"):
        loaded = PeftModel.from_pretrained(TINY["llama"](), folder)
    inputs = batch("llama")
    expected = logits(saved[name][1], inputs)
    torch.testing.assert_close(logits(loaded, inputs), expected, atol=0, rtol=0)

    # What is saved from here on is this version's, parts included.
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    own = [data for data in (again, *again.get("parts", [])) if data["peft_type"] != "LORA"]
    assert {data["lorada_version"] for data in own} == {__version__}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("version", [__version__, "0.0.1", None], ids=["same", "older", "none"])
def test_adapter_of_this_or_an_older_version_loads_in_silence(name, version, saved, tmp_path):
    folder = edited(saved, name, tmp_path, version)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*saved by lorada")
        PeftModel.from_pretrained(TINY["llama"](), folder)


def test_unknown_field_without_a_newer_version_is_peft_s_warning(saved, tmp_path):
    # A newer PEFT adds fields to every config; PEFT's rule for them is to warn and go on.
    folder = edited(saved, "LmamConfig", tmp_path, __version__, of_peft=1)
    with pytest.warns(UserWarning, match=r"Unexpected keyword arguments \['of_peft'\]"):
        PeftModel.from_pretrained(TINY["llama"](), folder)


def test_version_that_is_none_is_an_error_in_one_line(saved, tmp_path):
    folder = edited(saved, "LmamConfig", tmp_path, "soon")
    said = "lorada_version='soon' is not a version such as"
    refused(said, lambda: PeftModel.from_pretrained(TINY["llama"](), folder))
