"""The methods that are extensions of this project: how they are marked, and their sums."""

import pytest
from transformers import BartConfig, LlamaConfig

from lorada import METHODS, GainConfig, build_method
from lorada.cli.terminal import method_page, methods_list
from lorada.methods.lookup import describe, method_named
from lorada.methods.sizes import default_rate


def test_lists_of_methods_show_the_mark(capsys):
    from rich.console import Console

    console = Console(width=200)
    marks = {"gain": True, "gain+lmam": True, "lora+gain": True, "lora": False}
    for name, marked in marks.items():
        console.print(methods_list({name: describe(name)}))
        assert capsys.readouterr().out.startswith(f"{name} *  ") == marked
        assert ("ours: true" in method_page(name, describe(name))) == marked


def test_results_say_that_the_settings_are_not_from_the_paper():
    source = METHODS["gain"].source
    assert build_method("gain", LlamaConfig()).settings_from == f"not from the paper: {source}"
    found = build_method("lora+gain", BartConfig()).settings_from
    assert found.startswith("not from the paper: lora: ")
    assert found.endswith(f"; gain: {source}")
    assert not build_method("lora", LlamaConfig()).settings_from.startswith("not")


def test_gains_are_a_part_of_sums():
    lora, gain = build_method("lora+gain_query", LlamaConfig()).config.parts
    assert isinstance(gain, GainConfig)
    assert (lora.r, gain.form) == (32, "query")
    assert (default_rate("gain"), default_rate("lora+gain")) == (5e-3, 3e-4)
    with pytest.raises(ValueError, match="gain and gain_query each bring a gain part"):
        method_named("gain+gain_query")
