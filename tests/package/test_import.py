"""`import lorada` costs nothing and has its names; PEFT and transformers load what lorada saves.

A module of ours is imported behind another package, however that comes to be imported.
"""

import os
import pickle
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from conftest import assert_close
from folders import llama_folder
from peft import PeftConfig, get_peft_model
from programs import printed
from safetensors.torch import load_file, save_file
from stacks import logits, randomise
from transformers import AutoModelForCausalLM

import lorada
from lorada import LmamConfig
from lorada.data.task import Task
from lorada.inference.exported_config import mark
from lorada.methods.method import Method
from lorada.support.tuner_names import TUNERS

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


def test_the_public_names_are_these():
    names = {
        "BottleneckConfig", "RelativeNorm", "LamdaConfig", "LmamConfig", "LoradaConfig",
        "METHODS", "OmoeConfig", "PeftMethod", "PrefixConfig", "QuantaConfig", "SoraConfig",
        "TASKS", "__version__", "as_stack", "bake", "build_method",
        "compare_methods", "decide", "explain", "functional", "merge_weights",
    }  # fmt: skip
    assert names <= set(lorada.__all__)
    further = set(lorada.__all__) - names
    assert further <= set(TUNERS.values()), "only tuners come by themselves"
    for name in lorada.__all__:
        value = getattr(lorada, name)
        assert getattr(value, "__name__", name).rpartition(".")[2] == name
        assert not name.endswith("Config") or issubclass(value, PeftConfig)
    assert isinstance(lorada.METHODS["lorada_la"], Method)
    assert isinstance(lorada.TASKS["jsonl"], Task)
    assert lorada.__version__ == version("lorada")


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
    "peft, then lorada": (
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as f; a = f['sdpa']; "
        "import peft, lorada; assert f['sdpa'] is a" + PEFT
    ),
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


@pytest.mark.more
@pytest.mark.parametrize("way", WAYS)
def test_a_fresh_process_loads_what_was_saved(way, place):
    first, rest = WAYS[way].split("\n", 1)
    double = "from in_double import in_double\nentered = in_double()\nentered.__enter__()"
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


START = """
import sys
from lorada import _after_import
"""
ORDERS = {
    "before it is asked for": "import theirs; {}",
    "by a part of it": "{}; from theirs.part import __name__",
    "by ours": "{}; import ours",
    "after a look": (
        "{}; from importlib.util import find_spec; assert find_spec('theirs'); "
        "assert 'ours' not in sys.modules; import theirs"
    ),
    "at the second try": (
        "{}; import os; os.environ['FAILS'] = '1'\n"
        "try: import theirs\nexcept ImportError: del os.environ['FAILS']\nimport theirs"
    ),
}


@pytest.mark.parametrize("way", ORDERS)
def test_ours_is_imported_once_behind_theirs(way, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text(
        "import os\nif 'FAILS' in os.environ: raise ImportError('not yet')\n"
        "print('begins')\nimport theirs.part\nprint('ends')\n"
    )
    (tmp_path / "theirs" / "part.py").touch()
    (tmp_path / "ours.py").write_text("import theirs\nprint('ours', theirs.part.__name__)\n")
    code = START + ORDERS[way].format("_after_import('theirs', 'ours')")
    ending = "\nassert 'theirs' not in [getattr(f, 'module', None) for f in sys.meta_path]"
    said = printed(sys.executable, "-c", code + ending, folder=tmp_path)
    assert said.splitlines() == ["begins", "ends", "ours theirs.part"]
