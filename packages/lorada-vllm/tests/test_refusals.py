"""What is refused, each in one line that names it; needs no vLLM."""

import json
import sys
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import lorada_vllm.plugin
import lorada_vllm.versions
import pytest
from lorada_vllm.backends import BACKENDS, refuse_unknown_backend
from lorada_vllm.folder import base_config
from lorada_vllm.refusal import RefusedError, refuse
from stacks import lorada_la, write_stack
from transformers import AutoConfig

from lorada import BottleneckConfig, LmamConfig, PrefixConfig
from lorada.inference.exported_config import READERS


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def refusal(folder, **changes):
    with pytest.raises(RefusedError) as error:
        base_config({**config_of(folder), **changes}, str(folder))
    text = str(error.value)
    assert text.startswith("lorada-vllm: ")
    assert "\n" not in text
    return text


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return write_stack(tmp_path_factory.mktemp("stack") / "la", lorada_la())


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (PrefixConfig(length=4), "type PREFIX"),
        (LmamConfig(length=8, align="end"), "align='end'"),
        (LmamConfig(length=8, ablation="no_negative"), "ablation='no_negative'"),
        (BottleneckConfig(placement="pa_attn"), "placement='pa_attn'"),
        (BottleneckConfig(placement="parallel"), "placement='parallel'"),
        (
            BottleneckConfig(placement="series", target_modules=["up_proj"]),
            "bneck_series_up_proj.lora_down is not served",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_part_that_is_not_served_is_refused_by_its_name(part, named, tmp_path):
    assert named in refusal(write_stack(tmp_path / "stack", [part]))


def test_a_part_that_should_have_been_merged_is_refused_by_its_name(tmp_path):
    folder = write_stack(tmp_path / "stack", [LmamConfig(length=8)])
    saved = json.loads((folder / "adapter_config.json").read_text())
    saved["parts"].append({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]})
    (folder / "adapter_config.json").write_text(json.dumps(saved))
    assert "type LORA" in refusal(folder)


def test_several_bottlenecks_are_refused(tmp_path):
    parts = [BottleneckConfig(), BottleneckConfig(placement="pfeiffer")]
    assert "several bottleneck parts" in refusal(write_stack(tmp_path / "stack", parts))


def test_a_base_that_is_not_served_is_refused_by_its_class(exported):
    found = refusal(exported, base_architectures=["LlamaForSequenceClassification"])
    assert "LlamaForSequenceClassification is not served" in found


def test_a_map_longer_than_the_window_is_refused(exported):
    assert "sliding_window=63" in refusal(exported, sliding_window=63)
    config = {**config_of(exported), "sliding_window": 63, "use_sliding_window": False}
    assert base_config(config, str(exported))["base_architectures"] == ["LoradaLlamaForCausalLM"]


def test_a_name_on_the_hub_is_refused():
    with pytest.raises(RefusedError, match="some/model is not a local folder"):
        base_config({"base_architectures": ["LlamaForCausalLM"]}, "some/model")


def test_a_folder_without_its_adapter_is_refused(exported, tmp_path):
    (tmp_path / "config.json").write_text((exported / "config.json").read_text())
    assert "adapter_config.json" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").write_text((exported / "adapter_config.json").read_text())
    assert "has no adapter_model.safetensors" in refusal(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"short")
    assert "is no file of tensors" in refusal(tmp_path)


@pytest.mark.parametrize("number", ["0.31.4", "0.33.0", "1.0", "mine"])
def test_a_version_that_is_not_known_refuses_only_exported_folders(number, exported, monkeypatch):
    def installed(package):
        if package == "vllm":
            return number
        raise PackageNotFoundError

    monkeypatch.setattr(lorada_vllm.versions, "version", installed)
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(READERS, "vllm", None)
    lorada_vllm.plugin.register()
    with pytest.raises(RefusedError) as error:
        AutoConfig.from_pretrained(str(exported))
    assert str(error.value) == (
        f"lorada-vllm: vllm {number} is not a version that is known (0.32.*): install one of those"
    )


@pytest.mark.parametrize("name", ["FLASHINFER", "FLEX_ATTENTION"])
def test_a_backend_without_the_map_is_refused_with_those_that_have_it(name):
    with pytest.raises(RefusedError) as error:
        refuse_unknown_backend(name)
    assert str(error.value) == (
        f"lorada-vllm: the attention backend {name} does not add the map: start vLLM with "
        "--attention-backend FLASH_ATTN or TRITON_ATTN (CPU_ATTN on a CPU)"
    )


def test_the_backends_with_the_map_are_not_refused_and_are_those_of_the_readme():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for name in BACKENDS:
        refuse_unknown_backend(name)
        assert name in readme or name == "CPU_ATTN"


def test_a_known_version_is_not_refused(monkeypatch):
    monkeypatch.setattr(lorada_vllm.versions, "version", lambda package: "0.32.1+cpu")
    assert lorada_vllm.versions.unknown_version() is None


def test_without_the_plugin_the_error_names_it(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.delitem(READERS, "vllm", raising=False)
    with pytest.raises(ValueError, match="install lorada-vllm"):
        AutoConfig.from_pretrained(str(exported))


def test_in_a_server_a_refusal_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/some/bin/vllm", "serve"])
    with pytest.raises(SystemExit) as stopped:
        refuse("this and\n that")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "lorada-vllm: this and that\n"
