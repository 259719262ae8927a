"""The names that others may rely on."""

import sys
from importlib.metadata import version

import pytest
from peft import PeftConfig
from programs import printed

import lorada
from lorada.data.task import Task
from lorada.methods.method import Method
from lorada.support.tuners import TUNERS


def test_the_public_names_are_these():
    names = {
        "BottleneckConfig", "RelativeNorm", "LamdaConfig", "LmamConfig", "LoradaConfig",
        "METHODS", "OmoeConfig", "PrefixConfig", "QuantaConfig", "SoraConfig", "TASKS",
        "__version__", "as_stack", "bake", "build_method", "decide", "explain",
        "functional", "merge_weights",
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


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lorada.nothing


def test_importing_lorada_makes_the_types_known_to_peft_and_changes_no_attention_function():
    code = (
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as f; a = f['sdpa']; "
        "import lorada; assert f['sdpa'] is a; from peft import get_peft_config; "
        "print(type(get_peft_config({'peft_type': 'LMAM'})).__name__)"
    )
    assert printed(sys.executable, "-c", code).strip() == "LmamConfig"
