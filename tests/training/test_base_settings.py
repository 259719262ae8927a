"""``quantization``, ``attn_implementation`` and ``device_map``: how a run's base is loaded."""

import itertools
import json
import shutil
import sys
from functools import partial

import pytest
import torch
import yaml
from conftest import assert_close
from folders import refused
from trained_runs import QUICK, before_its_end, run_recipe
from transformers import AutoModelForCausalLM

from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.training.inputs import loading_settings, prepare_training
from lorada.training.train import train

SETTINGS = [*QUICK, "max_steps=2", "save_steps=1", "learning_rate=1e-2"]
recipe = partial(run_recipe, SETTINGS, method="lora+lmam")
LABELS = [{"text": "ab" * (i % 5 + 1), "label": "xyz"[i % 3]} for i in range(12)]
ROW_FILES = {"llama": None, "bert": LABELS}
BERT = {"hidden_size": 64, "intermediate_size": 64}  # a block of nf4 is 64 numbers
LLAMA = {**BERT, "initializer_range": 0.2}
BITS = ("nf4", "int8")
PACKAGES = [("nf4", "bitsandbytes", "bnb"), ("int8", "torchao", "torchao")]


def logits(run):
    with torch.no_grad():
        return run.model(torch.arange(5, 25)[None]).logits


@pytest.fixture(scope="module")
def runs(place):
    pytest.importorskip("bitsandbytes", reason="needs the bnb extra: pip install 'lorada[bnb]'")
    pytest.importorskip("torchao", reason="needs the extra: pip install 'lorada[torchao]'")
    found = {}
    for bits, model in itertools.product(BITS, ("llama", "bert")):
        asked = recipe(place, place / f"{bits}-{model}", f"quantization={bits}", model=model)
        found[bits, model] = train(asked, quiet=True).run
    return found


@pytest.mark.parametrize("bits", BITS)
def test_an_adapter_trains_on_a_quantised_base_and_loads_onto_it(place, runs, bits):
    run = load_run(runs[bits, "llama"])
    assert run.recipe.quantization == bits
    assert getattr(run.model.get_base_model(), "is_quantized", False)
    assert torch.equal(logits(run), logits(load_run(runs[bits, "llama"])))
    plain = AutoModelForCausalLM.from_pretrained(place / "llama").eval()
    ids = torch.arange(5, 25)[None]
    with run.model.disable_adapter(), torch.no_grad():
        rounded = run.model(ids).logits
        exact = plain(ids).logits
    assert not torch.equal(rounded, exact)
    assert torch.corrcoef(torch.stack([rounded.flatten(), exact.flatten()]))[0, 1] > 0.8
    result = json.loads((runs[bits, "llama"] / "result.json").read_text())
    assert result["parameters"]["total"] == plain.num_parameters()


@pytest.mark.parametrize("bits", BITS)
def test_the_head_of_a_classifier_is_not_quantised(runs, bits):
    run = load_run(runs[bits, "bert"])
    assert type(run.model.get_base_model().classifier.original_module) is torch.nn.Linear
    attention = run.model.get_base_model().bert.encoder.layer[0].attention.self
    weight = attention.key.weight.data
    assert type(attention.key) is not torch.nn.Linear or "torchao" in str(type(weight))
    assert evaluate(run, str(run.recipe.data))["n"] == len(LABELS)


@pytest.mark.parametrize("bits", BITS)
def test_a_resumed_run_on_a_quantised_base_comes_to_the_same_end(place, runs, tmp_path, bits):
    if bits == "nf4" and torch.cpu._is_avx512_bf16_supported():
        pytest.skip("bitsandbytes computes in bf16 here after the first forward in inference")
    cut = before_its_end(runs[bits, "llama"], tmp_path / "cut")
    other = recipe(place, cut)
    refused(f"had quantization='{bits}', not None", lambda: train(other, resume=True, quiet=True))
    train(recipe(place, cut, f"quantization={bits}"), resume=True, quiet=True)
    assert torch.equal(logits(load_run(cut)), logits(load_run(runs[bits, "llama"])))


@pytest.mark.parametrize("bits", BITS)
def test_an_export_merges_into_the_unquantised_base_and_says_so(
    runs, tmp_path, bits, works, caplog
):
    works("export", runs[bits, "llama"], tmp_path / "out")
    said = f"was trained on {bits} weights and is merged into unquantised ones"
    assert any(said in line for line in caplog.messages)
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config
    assert not getattr(config, "quantization_config", None)


@pytest.mark.parametrize(("bits", "package", "extra"), PACKAGES)
def test_a_missing_package_is_named_with_its_extra(
    place, tmp_path, monkeypatch, bits, package, extra
):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    asked = recipe(place, tmp_path / "run", f"quantization={bits}", "dtype=float32")
    with pytest.raises(ImportError, match=rf"{package}.* is missing: install the extra `{extra}`"):
        loading_settings(asked, None, headed=False)


def test_a_run_is_trained_and_loaded_with_the_attention_asked_for(place, tmp_path):
    run = train(recipe(place, tmp_path / "run", "attn_implementation=eager"), quiet=True).run
    saved = (run / "recipe.yaml").read_text()
    assert yaml.safe_load(saved)["attn_implementation"] == "eager"
    loaded = load_run(run)
    assert loaded.model.config._attn_implementation == "eager"
    other = shutil.copytree(run, tmp_path / "other")
    (other / "recipe.yaml").write_text(saved.replace("eager", "sdpa"))
    assert_close(logits(loaded), logits(load_run(other)), terms=64, size=4.0)


REFUSED = {
    "a quantised base that would train": (
        ("quantization=nf4",), "full", "quantization=nf4 and method=full, which trains the base",
    ),
    "a quantised base that would train in turns": (
        ("quantization=nf4",), "owlore_full", "quantization=nf4 and method=owlore_full, which",
    ),
    "4 bits in shards": (
        ("quantization=nf4", "training.fsdp=true"), "lora", "quantization=nf4 and training.fsdp",
    ),
    "8 bits in shards": (
        ("quantization=int8", "training.fsdp=true"), "lora", "quantization=int8 and training.fsdp",
    ),
    "an unknown attention": (
        ("attn_implementation=sdp",), "lora", 'attn_implementation=sdp: .*"sdp"` is not supported'
    ),
    "one mask for all heads": (
        ("attn_implementation=flex_attention",), "longlora",
        "flex_attention does not work with shifted sparse attention, .*: use sdpa or eager",
    ),
    "no mask": (
        ("attn_implementation=flash_attention_2", "lmam.ablation=no_negative"), "lmam",
        "does not work with ablation=no_negative",
    ),
    "a prefix": (
        ("attn_implementation=flash_attention_2",), "prefix", "does not work with a prefix",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_method_cannot_use_is_refused_with_what_works(place, tmp_path, case):
    pairs, method, message = REFUSED[case]
    asked = recipe(place, tmp_path / "run", *pairs, method=method)
    refused(message, lambda: prepare_training(asked))


def test_a_base_is_spread_where_the_recipe_says_so(place, tmp_path):
    asked = recipe(place, tmp_path / "run", "device_map=auto")
    settings = loading_settings(asked, torch.device("cuda"), headed=False)
    assert settings == {"device_map": "auto"}
    one = loading_settings(recipe(place, tmp_path / "run"), torch.device("cuda", 1), headed=False)
    assert one == {"device_map": {"": torch.device("cuda", 1)}}
    assert loading_settings(recipe(place, tmp_path / "run"), None, headed=False) == {}
    assert train(asked, quiet=True).result.steps == 2
