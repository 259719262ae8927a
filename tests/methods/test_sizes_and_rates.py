"""SIZES and RATES: the settings exist, and the rates are those that methods train with."""

import pytest

from lorada.methods.method import part_class, peft_configs
from lorada.methods.sizes import RATE_RANGE, RATES, SIZES, default_rate
from lorada.methods.table import METHODS


@pytest.mark.parametrize("part", SIZES)
def test_every_setting_of_a_size_is_a_setting_of_the_part(part):
    assert set(SIZES[part]) <= part_class(part).__dataclass_fields__.keys()


def test_every_method_has_a_rate_within_the_range_of_the_search():
    assert METHODS.keys() <= RATES.keys()
    for name, rate in RATES.items():
        assert name in METHODS or name in peft_configs(), name
        assert RATE_RANGE[0] <= rate <= RATE_RANGE[1], name


def test_a_rate_that_a_method_sets_itself_is_its_default_rate():
    own = {name: m.arguments["learning_rate"] for name, m in METHODS.items() if m.arguments
           if "learning_rate" in m.arguments}  # fmt: skip
    assert len(own) >= 5
    assert own == {name: default_rate(name) for name in own}


def test_a_map_on_top_leaves_the_rate_of_the_method_as_it_is():
    assert default_rate("lmam") == 1.2e-2
    assert default_rate("prefix+lmam") == default_rate("prefix") == 3e-2
