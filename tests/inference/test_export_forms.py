"""``lorada export`` with --adapter-only, --dtype and --shard-size, and its model cards."""

import json
import re
import shutil

import pytest
import test_export
import torch
from conftest import assert_close
from folders import ROWS, llama_folder, rows_file
from huggingface_hub import ModelCard
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from stacks import logits
from test_export import inputs, train_run
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from lorada.inference.load import load_run
from lorada.training.load_recipe import load_recipe
from lorada.training.model_card import front_matter

place = test_export.place
pytestmark = pytest.mark.fp64
THREE = [{"text": row["prompt"], "label": "abc"[i % 3]} for i, row in enumerate(ROWS)]


@pytest.fixture(scope="module")
def licensed(tmp_path_factory):
    """A finished run on a base with a licence."""
    home = tmp_path_factory.mktemp("licensed")
    llama_folder(home / "llama", initializer_range=0.2)
    (home / "llama" / "README.md").write_text("---\nlicense: apache-2.0\n---\nA base.\n")
    (home / "llama" / "LICENSE").write_text("Apache License")
    rows_file(home / "rows.jsonl")
    return train_run(home, home / "run", "lorada_la")


def weights(folder):
    files = (load_file(path) for path in sorted(folder.glob("model*.safetensors")))
    return {key: tensor for file in files for key, tensor in file.items()}


def test_the_adapter_alone_loads_on_the_base_that_it_names(licensed, tmp_path, json_of):
    written = json_of("export", licensed, tmp_path / "out", "--adapter-only")
    base = licensed.parent / "llama"
    assert written["base"] == str(base)
    assert written["adapter"] == ["LMAM", "LORA", "BOTTLENECK"]
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(base)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "LICENSE", "README.md", "adapter_config.json", "adapter_model.safetensors",
        "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    batch, expected = inputs(), load_run(licensed).model
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    assert_close(logits(model, batch), logits(expected, batch))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("2 + 2 =") == AutoTokenizer.from_pretrained(base)("2 + 2 =")


def test_the_card_of_an_adapter_alone_loads_a_head_of_three_classes(place, tmp_path, works):
    rows_file(place / "three.jsonl", THREE)
    run = train_run(place, tmp_path / "run", "lora+lmam", model="bert", rows="three.jsonl")
    out, _ = works("export", run, tmp_path / "out", "--adapter-only")
    assert f"next: cat {tmp_path / 'out'}/README.md" in out.replace("\n", "")
    card = (tmp_path / "out" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    names = {}
    exec(code.replace("path/to/this/folder", str(tmp_path / "out")), names)
    assert isinstance(names["model"], PeftModel)
    assert names[AutoPeftModelForSequenceClassification.__name__]
    batch = inputs()
    assert_close(logits(names["model"], batch), logits(load_run(run).model, batch))


def test_an_adapter_whose_base_has_changed_is_not_written(licensed, tmp_path, works, mistake):
    home = shutil.copytree(licensed.parent, tmp_path / "home")
    run, base = home / "run", home / "llama"
    for name in ("recipe.yaml", "result.json"):
        text = (run / name).read_text()
        (run / name).write_text(text.replace(str(licensed.parent), str(home)))
    works("export", run, tmp_path / "before", "--adapter-only")
    llama_folder(base, initializer_range=0.1)
    assert "are not those that" in mistake("export", run, tmp_path / "out", "--adapter-only")


@pytest.mark.fp64(False)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_merged_before_they_are_rounded(licensed, tmp_path, works, caplog, dtype):
    whole, cast = tmp_path / "whole", tmp_path / "cast"
    works("export", licensed, whole)
    assert "rounded" not in caplog.text
    works("export", licensed, cast, "--dtype", dtype)
    assert f"weights are rounded to {dtype}" in caplog.text
    merged, rounded = weights(whole), weights(cast)
    assert merged.keys() == rounded.keys()
    for key, tensor in merged.items():
        assert torch.equal(rounded[key], tensor.to(getattr(torch, dtype))), key
    adapters = [load_file(folder / "adapter_model.safetensors") for folder in (whole, cast)]
    assert all(torch.equal(tensor, adapters[1][key]) for key, tensor in adapters[0].items())
    assert json.loads((cast / "config.json").read_text())["dtype"] == dtype


@pytest.mark.fp64(False)
def test_a_wider_dtype_rounds_nothing_and_files_have_a_size(place, tmp_path, works, caplog):
    run = train_run(place, tmp_path / "run", "lmam", "dtype=bfloat16")
    words = ("--dtype", "float32", "--shard-size", "40KB")
    works("export", run, tmp_path / "out", *words)
    assert "rounded" not in caplog.text
    assert len([*(tmp_path / "out").glob("model-*.safetensors")]) > 1
    base = load_run(run).model.get_base_model().state_dict()
    for key, tensor in weights(tmp_path / "out").items():
        assert torch.equal(tensor, base[key].float()), key


def test_weights_that_float16_cannot_hold_are_refused(place, tmp_path, mistake):
    model = AutoModelForCausalLM.from_pretrained(place / "llama")
    model.lm_head.weight.data[3, 5] = 1e5
    model.save_pretrained(tmp_path / "llama")
    AutoTokenizer.from_pretrained(place / "llama").save_pretrained(tmp_path / "llama")
    run = train_run(place, tmp_path / "run", "lmam", model=tmp_path / "llama")
    line = mistake("export", run, tmp_path / "out", "--dtype", "float16")
    assert "float16 cannot hold the weights of lm_head.weight" in line
    assert not (tmp_path / "out").exists()


def test_a_fully_trained_model_with_a_pooling_is_marked_and_loads(place, tmp_path, json_of):
    rows_file(place / "three.jsonl", THREE)
    settings = ["pooling=mean"]
    run = train_run(place, tmp_path / "run", "full", *settings, model="bert", rows="three.jsonl")
    assert json_of("export", run, tmp_path / "out")["adapter"] == ["POOLING"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "lorada"
    batch, auto = inputs(), AutoModelForSequenceClassification
    model = auto.from_pretrained(tmp_path / "out")
    assert_close(logits(model, batch), logits(load_run(run).model, batch))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == str(place / "bert")


# Model cards.


def test_the_card_has_the_licence_of_the_base(licensed, tmp_path, works):
    for options in ([], ["--adapter-only"]):
        target = tmp_path / f"out{len(options)}"
        out, _ = works("export", licensed, target, *options)
        assert "the licence of the base" not in out
        card = ModelCard.load(target / "README.md")
        assert card.data.license == "apache-2.0"
        assert card.data.base_model == str(licensed.parent / "llama")
        assert card.data.library_name == ("peft" if options else "transformers")
        assert card.data.tags == ["lorada", "lorada_la"]
        assert "carried over: apache-2.0" in card.text
        assert (target / "LICENSE").read_text() == "Apache License"


def test_a_licence_that_is_not_known_is_said_to_be(place, tmp_path, call):
    run = train_run(place, tmp_path / "run", "lora")
    for options in ([], ["--adapter-only"]):
        target = tmp_path / f"out{len(options)}"
        _, out, _ = call("export", run, target, *options)
        assert "the licence of the base was not found" in out
        card = ModelCard.load(target / "README.md")
        assert "license" not in card.data.to_dict()
        assert "was not found on this machine" in card.text


def test_a_damaged_card_of_the_base_says_nothing(tmp_path):
    recipe = load_recipe(None, ["output=x"], {"method": "lora", "model": str(tmp_path)})
    for text in ("---\nlicense: [\n---\n", "---\n- a\n---\n", "no head", ""):
        (tmp_path / "README.md").write_text(text)
        assert "license" not in front_matter(recipe, "peft", "CAUSAL_LM")
