"""The names that others may rely on."""

import subprocess
import sys

import pytest

import lorada
from lorada.tuners import TUNERS


def test_the_public_names_are_these():
    names = {
        "BottleneckConfig", "EffectSize", "LamdaConfig", "LmamConfig", "LoradaConfig", "METHODS",
        "OmoeConfig", "PrefixConfig", "QuantaConfig", "SoraConfig", "TASKS", "__version__",
        "build_method", "explain", "functional",
    }  # fmt: skip
    assert names <= set(lorada.__all__)
    further = set(lorada.__all__) - names
    assert further <= {config for config, _ in TUNERS.values()}, "only tuners come by themselves"
    for name in lorada.__all__:
        assert getattr(lorada, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lorada.nothing


def test_functional_exports_the_map_and_its_twins():
    for name in ("low_rank_map", "add_map_reference", "map_value_product"):
        assert callable(getattr(lorada.functional, name))


def test_importing_lorada_makes_the_types_known_to_peft():
    code = (
        "import lorada; from peft import get_peft_config; "
        "print(type(get_peft_config({'peft_type': 'LMAM'})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "LmamConfig"


def test_importing_lorada_changes_no_attention_function():
    code = (
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as f; a = f['sdpa']; "
        "import lorada; assert f['sdpa'] is a"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
