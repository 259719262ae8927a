"""Parts with weights outside the layers: beside other adapters, saved, a process of its own."""

import subprocess
import sys

import pytest
import torch
from conftest import TINY
from peft import PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lorada import LoradaConfig, as_stack, build_method

IDS = torch.arange(3, 23).reshape(2, 10)
SHARING = ("vera", "pvera", "vblora", "unilora", "tinylora", "frod", "randlora")
PAIRS = [*((name, "ia3") for name in SHARING), ("lora", "vera"), ("tinylora", "vera+unilora+lmam")]


def config_of(name):
    config = build_method(name, TINY["llama"]().config).config
    config.task_type = None
    return config


def random_adapter(name, seed=0):
    """A tiny model with an adapter whose trained weights are random."""
    model = get_peft_model(TINY["llama"](), config_of(name))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize(("one", "two"), PAIRS, ids=[" and ".join(pair) for pair in PAIRS])
def test_two_adapters_on_one_model_are_each_as_alone(one, two, tmp_path):
    alone = {}
    for seed, (key, name) in enumerate({"one": one, "two": two}.items()):
        model = random_adapter(name, seed)
        alone[key] = logits(model)
        model.save_pretrained(tmp_path / key)
    config = as_stack(tmp_path / "one")
    model = PeftModel.from_pretrained(TINY["llama"](), tmp_path / "one", "one", config=config)
    model.load_adapter(tmp_path / "two", adapter_name="two")
    for key in ("one", "two", "one"):
        model.set_adapter(key)
        assert torch.equal(logits(model), alone[key])
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(TINY["llama"]()))

    model.save_pretrained(tmp_path / "both")
    for key, low in (("one", True), ("two", False)):
        folder = tmp_path / "both" / key
        loaded = PeftModel.from_pretrained(TINY["llama"](), folder, low_cpu_mem_usage=low)
        assert torch.equal(logits(loaded), alone[key])

    model.delete_adapter("one")
    model.set_adapter("two")
    assert torch.equal(logits(model), alone["two"])
    assert not any("one" in key.split(".") for key in model.state_dict())


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("vera", {"vera_A", "vera_B"}),
        ("pvera", {"pvera_A", "pvera_B"}),
        ("vblora", {"vblora_vector_bank"}),
        ("unilora", {"unilora_theta_d"}),
        ("frod", {f"frod_{kind}.self_attn_{m}_proj" for m in "qv"
                  for kind in ("V", "s_indices", "s_size")}),
        ("tinylora", {f"tinylora_v.{group}" for group in range(4)}),
    ],
)  # fmt: skip
def test_shared_weights_are_saved_once_under_pefts_names(name, shared, tmp_path):
    random_adapter(f"{name}+lora").save_pretrained(tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    outside = {key for key in keys if not key.startswith("base_model.model.")}
    assert outside == {f"base_model.{key}" for key in shared}
    stem = next(iter(shared)).split(".")[0]
    assert sum(stem in key.split(".") for key in keys) <= len(shared)


def test_projections_that_are_not_saved_are_made_again_from_the_seed(tmp_path):
    part = VeraConfig(r=8, save_projection=False, target_modules=["q_proj"])
    model = get_peft_model(TINY["llama"](), LoradaConfig(parts=[part]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 if parameter.requires_grad else 0)
    model.save_pretrained(tmp_path)
    assert not any("vera_A" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    loaded = PeftModel.from_pretrained(TINY["llama"](), tmp_path)
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.more
def test_a_process_of_its_own_loads_what_was_saved(tmp_path):
    TINY["llama"]().save_pretrained(tmp_path / "base")
    model = random_adapter("vblora+vera+unilora+lora+lmam")
    model.save_pretrained(tmp_path / "adapter")
    code = f"""
import torch, lorada
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({str(tmp_path / "base")!r})
model = PeftModel.from_pretrained(base, {str(tmp_path / "adapter")!r}).eval()
with torch.no_grad():
    logits = model(input_ids=torch.arange(3, 23).reshape(2, 10)).logits
torch.save(logits, {str(tmp_path / "logits.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


def test_transformers_itself_says_that_only_peft_can_load_such_an_adapter(tmp_path):
    TINY["llama"]().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, config_of("vblora+lmam")).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"only PEFT can load it: PeftModel\.from_pretrained"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
