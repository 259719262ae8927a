"""`import lorada` costs nothing, and PEFT and transformers load what lorada saves from there on."""

import os
import pickle
import subprocess
import sys

import pytest
import torch
from conftest import assert_close
from folders import llama_folder
from peft import get_peft_model
from programs import printed
from safetensors.torch import load_file, save_file
from stacks import logits, randomise
from transformers import AutoModelForCausalLM

from lorada import LmamConfig
from lorada.inference.exported_config import mark

pytestmark = pytest.mark.fp64
IDS = torch.arange(5, 25)[None]
HEAVY = ("torch", "transformers", "peft", "datasets", "numpy")


def test_import_lorada_imports_no_other_package_and_says_nothing():
    code = (
        "import time, lorada, sys\nassert time.process_time() < 0.5\n"
        "assert set(lorada.__all__) <= set(dir(lorada))\n"
        f"print([n for n in {HEAVY} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_misspelt_name_is_answered_with_the_name():
    code = "import lorada\nlorada.LmamConfg"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Did you mean: 'LmamConfig'?" in done.stderr


def logits_of(model):
    return logits(model.eval().double(), {"input_ids": IDS})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base with a map saved for it, both in one folder as it is exported, and their logits."""
    place = tmp_path_factory.mktemp("import")
    llama_folder(place / "base", initializer_range=0.2)
    llama_folder(place / "exported", initializer_range=0.2)
    base = AutoModelForCausalLM.from_pretrained(place / "base")
    plain = logits_of(base)
    model = get_peft_model(base, LmamConfig(task_type="CAUSAL_LM", length=8))
    randomise(model)
    for folder in ("adapter", "exported"):
        model.save_pretrained(place / folder)
    mark(place / "exported")
    expected = logits_of(model)
    assert not torch.allclose(expected, plain, atol=1e-2)
    save_file({"ids": IDS}, place / "ids.safetensors")
    (place / "config.pickle").write_bytes(pickle.dumps(model.peft_config["default"]))
    return place, expected


PEFT = """
from transformers import AutoModelForCausalLM as Auto
from peft import AutoPeftModelForCausalLM, PeftModel
models = [PeftModel.from_pretrained(Auto.from_pretrained("base"), "adapter"),
          AutoPeftModelForCausalLM.from_pretrained("adapter")]
"""
WAYS = {
    "peft, then lorada": "import peft, lorada" + PEFT,
    "transformers alone": (
        "import lorada\nfrom transformers import AutoModelForCausalLM as Auto\n"
        "assert 'peft' not in __import__('sys').modules\n"
        "models = [Auto.from_pretrained('adapter'), Auto.from_pretrained('exported')]"
    ),
    "a pickle alone": (
        "import pickle\nconfig = pickle.load(open('config.pickle', 'rb'))\n"
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM as Auto\n"
        "base = Auto.from_pretrained('base')\n"
        "models = [PeftModel.from_pretrained(base, 'adapter', config=config)]"
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_fresh_process_loads_what_was_saved(way, place):
    first, rest = WAYS[way].split("\n", 1)
    double = "from double import in_double\nentered = in_double()\nentered.__enter__()"
    ending = (
        "from safetensors.torch import load_file, save_file\n"
        "ids = load_file('ids.safetensors')['ids']\n"
        "logits = {str(i): m.eval()(ids).logits.detach() for i, m in enumerate(models)}\n"
        "save_file(logits, 'found.safetensors')"
    )
    folder, expected = place
    code = "\n".join([first, double, rest, ending])
    printed(sys.executable, "-c", code, folder=folder, PYTHONPATH=os.pathsep.join(sys.path))
    found = load_file(folder / "found.safetensors")
    assert found
    for values in found.values():
        assert_close(values, expected)
