"""``quantization``, ``attn_implementation`` and ``device_map``: how a run's base is loaded."""

import itertools
import json
import shutil
import sys

import pytest
import torch
import yaml
from conftest import assert_close
from folders import bert_folder, llama_folder, rows_file
from transformers import AutoModelForCausalLM

from lorada.inference.evaluate import evaluate
from lorada.inference.load import load_run
from lorada.runs.folder.same_base import refuse_different_bases
from lorada.runs.models.base_settings import loading_settings
from lorada.runs.prepare import prepare_training
from lorada.runs.recipe import load_recipe
from lorada.runs.training.train import train

QUICK = [
    "max_steps=2", "save_steps=1", "report_to=[]", "max_length=32", "learning_rate=1e-2",
    "logging_steps=1", "per_device_train_batch_size=4",
]  # fmt: skip
LABELS = [{"text": "ab" * (i % 5 + 1), "label": "xyz"[i % 3]} for i in range(12)]
WIDE = {"hidden_size": 64, "intermediate_size": 64}  # a block of nf4 is 64 numbers
BITS = ("nf4", "int8")
PACKAGES = [("nf4", "bitsandbytes", "bnb"), ("int8", "torchao", "torchao")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("bases")
    llama_folder(place / "llama", initializer_range=0.2, **WIDE)
    bert_folder(place / "bert", **WIDE)
    rows_file(place / "llama.jsonl")
    rows_file(place / "bert.jsonl", LABELS)
    return place


def recipe(place, output, *pairs, method="lora+lmam", model="llama"):
    options = {"method": method, "model": str(place / model), "output": str(output)}
    return load_recipe(None, [*QUICK, *pairs], {**options, "data": str(place / f"{model}.jsonl")})


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
    assert type(attention.key) is not torch.nn.Linear or "torchao" in str(
        type(attention.key.weight.data)
    )
    assert evaluate(run, str(run.recipe.data))["n"] == len(LABELS)


@pytest.mark.parametrize("bits", BITS)
def test_a_resumed_run_on_a_quantised_base_comes_to_the_same_end(place, runs, tmp_path, bits):
    if bits == "nf4" and torch.cpu._is_avx512_bf16_supported():
        pytest.skip("bitsandbytes computes in bf16 here after the first forward in inference")
    cut = shutil.copytree(runs[bits, "llama"], tmp_path / "cut")
    (cut / "result.json").unlink()
    for name in ("adapter", "checkpoint-2"):
        shutil.rmtree(cut / name)
    with pytest.raises(ValueError, match=f"had quantization='{bits}', not None"):
        train(recipe(place, cut), resume=True, quiet=True)
    train(recipe(place, cut, f"quantization={bits}"), resume=True, quiet=True)
    assert torch.equal(logits(load_run(cut)), logits(load_run(runs[bits, "llama"])))


@pytest.mark.parametrize("bits", BITS)
def test_an_export_merges_into_the_unquantised_base_and_says_so(runs, tmp_path, bits, call, caplog):
    code, _, err = call("export", runs[bits, "llama"], tmp_path / "out")
    assert code == 0, err
    said = f"was trained on {bits} weights and is merged into unquantised ones"
    assert any(said in line for line in caplog.messages)
    assert not getattr(
        AutoModelForCausalLM.from_pretrained(tmp_path / "out").config, "quantization_config", None
    )


@pytest.mark.parametrize("method", ["full", "owlore_full"])
def test_a_method_that_trains_the_base_needs_it_unquantised(place, tmp_path, method):
    with pytest.raises(ValueError, match=f"quantization=nf4 and method={method}, which trains"):
        prepare_training(recipe(place, tmp_path / "run", "quantization=nf4", method=method))


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


@pytest.mark.parametrize("name", ["eager"])
def test_a_run_is_trained_and_loaded_with_the_attention_asked_for(place, tmp_path, name):
    asked = f"attn_implementation={name}"
    config = json.loads((place / "llama" / "config.json").read_text())
    plain = shutil.copytree(place / "llama", tmp_path / "plain")  # flex attention has no dropout
    (plain / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))
    run = train(recipe(place, tmp_path / "run", asked, f"model={plain}"), quiet=True).run
    assert yaml.safe_load((run / "recipe.yaml").read_text())["attn_implementation"] == name
    loaded = load_run(run)
    assert loaded.model.config._attn_implementation == name
    other = shutil.copytree(run, tmp_path / "other")
    (other / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace(name, "sdpa"))
    assert_close(logits(loaded), logits(load_run(other)), terms=64, size=4.0)
    with pytest.raises(ValueError, match=f"attn_implementation={name} and .* with attn_impl"):
        refuse_different_bases([run, other])


REFUSED = {
    "an unknown one": (("attn_implementation=sdp",), "lora", "unknown attn_implementation 'sdp'"),
    "one mask for all heads": (
        ("attn_implementation=flex_attention",), "longlora",
        "flex_attention does not work with shifted sparse attention, .*: use sdpa or eager",
    ),
    "no mask": (
        ("attn_implementation=flash_attention_2", "lmam.ablation=no_negative"), "lmam",
        "does not work with ablation=no_negative",
    ),
    "packed": (
        ("attn_implementation=flash_attention_2", "packing=true"), "prefix",
        "does not work with a prefix before each of several packed rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_attention_that_a_part_cannot_use_is_refused_with_those_that_work(place, tmp_path, case):
    pairs, method, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        prepare_training(recipe(place, tmp_path / "run", *pairs, method=method))
    assert "\n" not in str(error.value)


def test_a_base_is_spread_where_the_recipe_says_so(place, tmp_path):
    asked = recipe(place, tmp_path / "run", "device_map=auto")
    settings = loading_settings(asked, torch.device("cuda"), headed=False)
    assert settings == {"device_map": "auto"}
    one = loading_settings(recipe(place, tmp_path / "run"), torch.device("cuda", 1), headed=False)
    assert one == {"device_map": {"": torch.device("cuda", 1)}}
    assert loading_settings(recipe(place, tmp_path / "run"), None, headed=False) == {}
    assert train(asked, quiet=True).result["steps"] == 2
